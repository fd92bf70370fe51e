"""Measures of images, by the libraries that define them; weights lie under one cache folder.

HPS v2.1 (arXiv 2306.09341), CLIP score (2104.08718), LAION's aesthetic score, FID (1706.08500),
improved precision and recall (1904.06991), LPIPS (1801.03924) between seeds, and legible text by
OCR. The libraries are the extra `image-metrics`; they are imported when a measure is asked for.

Shapes: N images, D feature channels.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .weights import Needed

_CLIP = Needed(
    "clip/open_clip_model.safetensors",
    "https://huggingface.co/timm/vit_large_patch14_clip_224.openai",
)
_INCEPTION = Needed(
    "inception/weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
_FIDELITY = Needed("torch_fidelity", "pip install -e '.[image-metrics]' in the clone", package=True)
_OPEN_CLIP = Needed("open_clip", "pip install -e '.[image-metrics]' in the clone", package=True)
NEEDS = {
    "hps": (
        Needed(
            "hps/HPS_v2.1_compressed.pt",
            "https://huggingface.co/xswu/HPSv2, HPS_v2.1_compressed.pt",
        ),
        _OPEN_CLIP,
    ),
    "clip": (_CLIP, _OPEN_CLIP),
    "aesthetic": (
        Needed(
            "aesthetic/sa_0_4_vit_l_14_linear.pth",
            "https://github.com/LAION-AI/aesthetic-predictor, sa_0_4_vit_l_14_linear.pth",
        ),
        _CLIP,
        _OPEN_CLIP,
    ),
    "diversity": (
        Needed(
            "torch/hub/checkpoints/alexnet-owt-7be5be79.pth",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        ),
        Needed("lpips", "pip install -e '.[image-metrics]' in the clone", package=True),
    ),
    "text": (Needed("tesseract", "apt-get install tesseract-ocr", package=True),),
    "fid": (_INCEPTION, _FIDELITY),
    "precision_recall": (_INCEPTION, _FIDELITY),
}
"""Measures of single images first, then those of whole sets."""
SET_METRICS = ("fid", "precision_recall")
SMALLEST_SET = 4
"""Every point needs three neighbours besides itself; FID's covariance needs more than one image."""


class Clip:
    """An open_clip model: unit features of images and of texts."""

    def __init__(
        self,
        name: str,
        weights: Path | None,
        *,
        device: torch.device | str = "cpu",
        batch: int = 32,
    ):
        import open_clip

        # Weights are loaded below: open_clip would unpickle what is no state of a model, too. It
        # would also warn that there are none.
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            self.model, _, self.transform = open_clip.create_model_and_transforms(
                name, pretrained=None, device=device
            )
        finally:
            logging.disable(disabled)
        if weights is not None:
            self.model.load_state_dict(_state(weights))
        self.model.eval()
        self.tokenize, self.device, self.batch = open_clip.get_tokenizer(name), device, batch

    @torch.no_grad()
    def images(self, files: Sequence[Path]) -> Tensor:
        """Features of image files: [N, D], float32 on the CPU, of length one."""
        parts = (
            torch.stack([self.transform(_rgb(file)) for file in some])
            for some in _batches(files, self.batch)
        )  # one at a time: 600 kB an image
        return torch.cat(
            [
                self.model.encode_image(part.to(self.device), normalize=True).float().cpu()
                for part in parts
            ]
        )

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Features of prompts: as `images`."""
        parts = (
            self.tokenize(list(some)).to(self.device) for some in _batches(prompts, self.batch)
        )
        return torch.cat(
            [self.model.encode_text(part, normalize=True).float().cpu() for part in parts]
        )

    def similarity(self, files: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        """100 x the cosine between image i and prompt i: [N]; with HPS v2.1's weights this is its
        score.
        """
        return 100 * (self.images(files) * self.texts(prompts)).sum(1)


def load_hps(cache: Path, device: torch.device | str = "cpu") -> Clip:
    """HPS v2.1: fine-tuned weights of CLIP ViT-H/14."""
    return Clip("ViT-H-14", cache / NEEDS["hps"][0].path, device=device)


def load_clip(cache: Path, device: torch.device | str = "cpu") -> Clip:
    """OpenAI's CLIP ViT-L/14, which the CLIP score and the aesthetic head use."""
    return Clip("ViT-L-14-quickgelu", cache / _CLIP.path, device=device)


def aesthetic(features: Tensor, head: Path) -> Tensor:
    """LAION's linear head on CLIP ViT-L/14 features [N, 768] of length one: about 1 to 10, [N]."""
    state = _state(head)
    return (features @ state["weight"].float().T + state["bias"].float())[:, 0]


def _state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


class Pictures(torch.utils.data.Dataset):
    """Image files as [3, side, side] uint8, their middle square resized: sets of different sizes
    become comparable.
    """

    def __init__(self, files: Sequence[Path], side: int):
        self.files, self.side = list(files), side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = _rgb(self.files[index])
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        image = image.crop((left, top, left + edge, top + edge)).resize(
            (self.side, self.side), Image.Resampling.BICUBIC
        )
        return (
            torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            .view(self.side, self.side, 3)
            .permute(2, 0, 1)
            .contiguous()
        )


def set_metrics(
    ours: Sequence[Path],
    theirs: Sequence[Path],
    metrics: Sequence[str],
    weights: Path,
    *,
    side: int,
    cuda: bool = False,
) -> dict[str, float]:
    """ "fid", "precision" and "recall" of a set of images against another, by torch-fidelity on
    Inception features.
    """
    import torch_fidelity

    if min(len(ours), len(theirs)) < SMALLEST_SET:
        raise ValueError(
            f"{len(ours)} and {len(theirs)} images: compare sets of at least {SMALLEST_SET}, and of"
            " thousands for figures to publish"
        )
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(ours, side),
        input2=Pictures(theirs, side),
        fid="fid" in metrics,
        prc="precision_recall" in metrics,
        cuda=cuda,
        verbose=False,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        batch_size=32,
        save_cpu_ram=True,
    )
    names = {"frechet_inception_distance": "fid", "precision": "precision", "recall": "recall"}
    return {short: float(found[name]) for name, short in names.items() if name in found}


def lpips_distance(
    cache: Path, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor], float]:
    """LPIPS (AlexNet) between two images [3, H, W] in [-1, 1]."""
    import lpips

    torch.hub.set_dir(str(cache / "torch" / "hub"))
    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> float:
        return network(a[None].to(device), b[None].to(device)).item()

    return distance


def diversity(
    groups: dict[str, list[Path]], distance: Callable[[Tensor, Tensor], float], *, side: int
) -> dict[str, float]:
    """Mean distance between the images of one prompt, over all pairs of its seeds, by prompt;
    prompts of one image have none.
    """
    out = {}
    for prompt, files in groups.items():
        images = [image.float().div(127.5).sub(1) for image in Pictures(files, side)]
        pairs = list(itertools.combinations(images, 2))
        if pairs:
            out[prompt] = sum(distance(a, b) for a, b in pairs) / len(pairs)
    if not out:
        raise ValueError("diversity needs two images of one prompt: use seeds of at least 2")
    return out


def wanted_text(prompt: str) -> str:
    """What a prompt asks to be written: its parts in quotation marks, joined; empty without any."""
    return " ".join(
        part
        for match in re.findall(r'"([^"]+)"|“([^”]+)”|\'([^\']+)\'(?!\w)', prompt)
        for part in match
        if part
    )


def legibility(file: Path, text: str) -> float:
    """How much of `text` Tesseract reads in an image: 1 - edit distance / length, letters and
    digits alone, 0 at worst.
    """
    # Its own threads make it slower on pictures of this size.
    done = subprocess.run(
        ["tesseract", str(file), "-", "--psm", "11"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
    )
    if done.returncode:
        raise ValueError(
            f"{file}: tesseract failed ({done.stderr.strip().splitlines()[-1:]}): is it an image?"
        )
    plain = lambda words: re.sub(r"[\W_]+", "", words).lower()  # noqa: E731
    want, read = plain(text), plain(done.stdout)
    if not want:
        raise ValueError(f"text {text!r} has no letter or digit to read")
    return max(0.0, 1 - edit_distance(want, read) / len(want))


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements that make a into b."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _rgb(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
