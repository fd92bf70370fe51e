"""Rewards of CLIP models: agreement with the prompt, LAION's aesthetic score, HPS v2.1.

Models are folders or hub names of a CLIPModel of transformers in safetensors. Weights are read at
the first call; that the files contain all of them is checked at the start of a run.

Shapes: B samples [B, 3, F, H, W] in [-1, 1], N images, D feature channels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..backbones.weight_files import load_whole
from ..config import short
from ..config.json_files import read_object
from ..data.reading import reading
from .frames import chosen_frames

DEFAULT = "openai/clip-vit-large-patch14"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images, in [0, 1]."""
HEAD = "sa_0_4_vit_l_14_linear.safetensors"
"""LAION's aesthetic head (github.com/LAION-AI/aesthetic-predictor), saved as safetensors."""


class Clip:
    """Features of a CLIP model of transformers.

    Args:
        model: Folder or hub name.
        function: Name of the reward, for messages.
        whole: Whether the model sees the whole image, with black bars, or its central square.

    Raises:
        ValueError: Files or weights of the model are missing.
    """

    def __init__(self, model: str, *, function: str, whole: bool = False):
        self.folder, self.whole = _find(model, function), whole
        if lacking := lacking_of(self.folder, tokenizer=function != "aesthetic"):
            raise ValueError(
                f"rewards.model={model!r} for function={function!r} has no {lacking}: save a"
                " CLIPModel of transformers with save_pretrained, with its tokenizer"
            )
        self.side: int = read_object(self.folder / "config.json")["vision_config"]["image_size"]

    @functools.cached_property
    def network(self) -> Any:
        """The frozen model, in float32 on the CPU."""
        from transformers import CLIPModel

        found = load_whole(CLIPModel, self.folder, use_safetensors=True)
        return found.float().requires_grad_(False)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.folder)

    @torch.no_grad()
    def images(self, samples: Tensor) -> Tensor:
        """Encode the chosen frames of samples.

        Args:
            samples: Samples [B, 3, F, H, W] in [-1, 1].

        Returns:
            Unit-length features [B, f, D] of the frames.
        """
        frames = chosen_frames(samples.float())
        flat = frames.transpose(1, 2).flatten(0, 1)
        network = self.network.to(flat.device)
        features = _features(network.get_image_features(pixel_values=self._pixels(flat)))
        return nnf.normalize(features, dim=-1).unflatten(0, (len(samples), -1))

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Encode prompts.

        Args:
            prompts: B prompts.
            device: Device to compute on.

        Returns:
            Unit-length features [B, D].
        """
        network = self.network.to(device)
        limit = network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(device)
        return nnf.normalize(_features(network.get_text_features(**tokens)), dim=-1)

    def _pixels(self, images: Tensor) -> Tensor:
        """Fit images [N, 3, H, W] in [-1, 1] into the model's square, and normalise."""
        edges = images.shape[-2:]
        scale = self.side / (max(edges) if self.whole else min(edges))
        size = [max(1, round(edge * scale)) for edge in edges]
        resized = nnf.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = ((self.side - edge) // 2 for edge in size)  # negative if it is cropped
        bars = (left, self.side - size[1] - left, top, self.side - size[0] - top)
        square = nnf.pad(resized, bars, value=-1.0)
        mean, std = (torch.tensor(each).view(3, 1, 1).to(images) for each in (MEAN, STD))
        return (square / 2 + 0.5 - mean) / std


def load_clip(model: str, function: str = "clip") -> Any:
    """Make the reward of agreement with the prompt: the cosine similarity of CLIP, in percent.

    Args:
        model: Folder or hub name; empty is OpenAI's ViT-L/14.
        function: Name of the reward.

    Returns:
        The reward function.

    Raises:
        ValueError: Files of the model are missing.
    """
    # HPS scales the longer side and adds bars, see image_transform in github.com/tgxs002/HPSv2.
    clip = Clip(model or DEFAULT, function=function, whole=function == "hps")

    def score(samples: Tensor, prompts: Sequence[str]) -> Tensor:
        images = clip.images(samples)
        texts = clip.texts(prompts, samples.device)
        return 100 * (images * texts[:, None]).sum(-1).mean(1)

    return score


def load_hps(model: str) -> Any:
    """Make the reward HPS v2.1 (arXiv 2306.09341): a CLIP model that people's choices have tuned.

    Args:
        model: Folder or hub name of the weights as a CLIPModel of transformers.

    Returns:
        The reward function.

    Raises:
        ValueError: Files of the model are missing.
    """
    return load_clip(model, "hps")


def load_aesthetic(model: str) -> Any:
    """Make the reward of LAION's aesthetic score, about 1 to 10; prompts are ignored.

    Args:
        model: Folder with CLIP ViT-L/14 and the head.

    Returns:
        The reward function.

    Raises:
        ValueError: Files are missing.
    """
    clip = Clip(model, function="aesthetic")
    head = clip.folder / HEAD
    if not head.is_file():
        raise ValueError(
            f"rewards.model={model!r} has no {HEAD}: save LAION's head for CLIP ViT-L/14"
            " (github.com/LAION-AI/aesthetic-predictor) there, with weight and bias"
        )
    state = load_file(head)

    def score(samples: Tensor, prompts: Sequence[str]) -> Tensor:
        features = clip.images(samples).mean(1)
        weight, bias = (state[name].to(features) for name in ("weight", "bias"))
        return (features @ weight.T + bias)[:, 0]

    return score


def _features(found: Any) -> Tensor:
    """Return the projected features, which newer versions of transformers wrap."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _find(model: str, function: str) -> Path:
    """Return the folder of a model, and download it if it is a hub name."""
    folder = Path(model)
    return folder if folder.is_dir() else _download(model, function)


def lacking_of(folder: Path, *, tokenizer: bool) -> str:
    """Return what a folder lacks to be a complete CLIPModel of transformers.

    transformers initialises missing weights at random and makes a tokenizer without words.

    Args:
        folder: The folder.
        tokenizer: Whether its tokenizer is needed.

    Returns:
        A phrase for a message; "" if the folder is complete.

    Raises:
        ValueError: A file is damaged.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name != HEAD]
    if not (folder / "config.json").is_file() or not files:
        return "config.json and *.safetensors"
    if read_object(folder / "config.json").get("model_type") != "clip":
        return 'config.json with "model_type": "clip"'
    words = [["tokenizer.json"], ["vocab.json", "merges.txt"]]
    if tokenizer and not any(all((folder / name).is_file() for name in each) for each in words):
        return "tokenizer.json, or vocab.json and merges.txt"
    stored: dict[str, list[int]] = {}
    for path in files:
        with reading(path), safe_open(path, "pt") as file:
            stored |= {name: file.get_slice(name).get_shape() for name in file.keys()}
    wanted = _shapes(folder)
    missing = [name for name, shape in wanted.items() if stored.get(name) != shape]
    if missing:
        return f"weights of {len(missing)} of {len(wanted)} parameters, e.g. {short(missing[0])}"
    return ""


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of the model's parameters by name."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        network = CLIPModel(CLIPConfig.from_pretrained(folder))
    return {name: list(each.shape) for name, each in network.named_parameters()}


def _download(model: str, function: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.safetensors"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"rewards.model={model!r} for function={function!r} is neither a folder nor a model"
            f" that can be downloaded ({type(error).__name__}): give a folder with its weights"
        ) from error
