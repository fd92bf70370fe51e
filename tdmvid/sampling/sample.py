"""Videos of a list of prompts, from a teacher or a few-step student, on any number of ranks; each
is made once.

The noise of a video is a function of (seed, prompt), so neither batch, rank nor order changes
it. Sampling is the STOCK diffusers pipeline with the scheduler that lies beside the student.

Shapes: B videos of a batch, C latent channels, F frames, H W latent size.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters.bundle import read_facts
from ..backbones.base import Backbone
from ..backbones.encoded_images import embed_images
from ..backbones.text_limit import without_warnings
from ..config import check_number, to_dict
from ..config.ranges import OPTIONS
from ..data.conditions import Conditions
from ..data.embeddings import EmbeddingCache, embed_prompts
from ..data.video import write_image, write_video
from ..parallel import launch
from .manifest import append_entry, claim_folder, entry_of, gather_manifest
from .shots import Shot, noise
from .student import check_guidance, set_flow_shift, stock_defaults, use_student, weights_of


@dataclass(frozen=True)
class Sampler:
    """What samples: the teacher, or with `student` the LoRA or network in that folder."""

    student: Path | None = None
    steps: int | None = None
    """None: as many as the student was trained for, or the stock pipeline's default for a teacher.
    """
    cfg: float | None = None
    """None: 1 (off) for a student, the stock pipeline's default for a teacher."""
    negative: str = ""
    """The prompt that guidance leads away from."""
    shift: float = 0.0
    """Flow shift of a teacher's times; 0 keeps that of the model's own scheduler."""
    cfg_2: float | None = None
    """`guidance_scale_2` of the stock call of a teacher of two experts."""
    use_dynamic_cfg: bool = False
    """As of CogVideoX's stock call."""

    @property
    def guidance(self) -> dict[str, Any]:
        """Return the arguments of the stock call that change its guidance with time."""
        second = {} if self.cfg_2 is None else {"guidance_scale_2": self.cfg_2}
        return second | ({"use_dynamic_cfg": True} if self.use_dynamic_cfg else {})


def sample_videos(
    out: Path,
    shots: list[Shot],
    *,
    backbone: Backbone,
    sampler: Sampler,
    world: launch.World,
    batch: int = 1,
    cache: Path = Path("cache/embeddings"),
) -> list[dict]:
    """Make the shots that `out` lacks, each rank its share.

    Args:
        batch: videos at a time on each rank.
        cache: where text embeddings are kept.

    Returns:
        The manifest: a dict per video, in the order of `shots`.

    Raises:
        ValueError: if `out` holds videos of other settings or prompts.
    """
    check_number("batch", batch, OPTIONS["batch"])
    if backbone.takes_images and any(not shot.image for shot in shots):
        raise ValueError(
            f"model={backbone.config.path!r} starts from an image, and prompts alone are to be"
            " sampled: use `tdmvid sample` with images"
        )
    digest = hashlib.sha256(repr(shots).encode()).hexdigest()[:16]
    launch.check_same("list of prompts", {"videos": digest})
    settings = _settings(backbone, sampler)
    done = claim_folder(out, settings, shots) if world.primary else None
    for line in settings.get("untrained", ()) if world.primary else ():
        print(line, flush=True)
    # What machines see of a shared folder may differ for a while, and each would share out another
    # list.
    done = launch.broadcast_from_rank0(done)
    todo = [shot for shot in shots if shot.file not in done]
    cut = _cut(backbone, shots, world)
    entries = {shot.file: entry_of(shot, settings, cut) for shot in shots}
    if todo:
        conds = _embed(todo, sampler.negative, backbone, world, cache)
        _sample_share(out, todo, backbone, sampler, conds, entries, world, batch)
        # The pipeline's copy of the network is in a cycle, which would keep the weights on the
        # device while another samples or scores there.
        gc.collect()
    launch.barrier()
    made = [entries[shot.file] for shot in shots]
    if world.primary:
        gather_manifest(out, made)
    launch.barrier()
    return made


def _sample_share(
    out: Path,
    todo: list[Shot],
    backbone: Backbone,
    sampler: Sampler,
    conds: Conditions,
    entries: dict[str, dict],
    world: launch.World,
    batch: int,
) -> None:
    """Sample this rank's share of the shots, a batch at a time."""
    steps, cfg = _steps_and_cfg(backbone, sampler)
    pipeline = use_student(backbone, sampler.student, steps=steps)
    if sampler.shift:
        set_flow_shift(pipeline, sampler.shift)
    null = conds.of_prompts([sampler.negative]).to(world.device) if cfg != 1 else None
    mine = todo[world.rank :: world.size]
    with tqdm(total=len(mine), desc="sampling", unit="video", disable=not world.primary) as bar:
        for start in range(0, len(mine), batch):
            some = mine[start : start + batch]
            draws = [noise(shot.prompt, shot.seed, backbone.latent_shape()) for shot in some]
            z = torch.stack(draws).to(world.device)  # [B, C, F, H, W]
            cond = conds.get([shot.item for shot in some]).to(world.device)
            latents = backbone.stock.latents(
                pipeline, z, cond, steps=steps, cfg=cfg, null=null, guidance=sampler.guidance
            )
            videos = backbone.decode(latents).cpu()
            _write(out, some, videos, backbone, entries, world.rank)
            bar.update(len(some))


def _steps_and_cfg(backbone: Backbone, sampler: Sampler) -> tuple[int, float]:
    if sampler.student is not None:
        trained = read_facts(sampler.student).get("steps")
        steps = trained if sampler.steps is None else sampler.steps
        if steps is None:
            raise ValueError(
                f"{sampler.student} does not say for how many steps it was trained: give steps"
            )
        cfg = 1.0
    else:
        steps, cfg = stock_defaults(backbone)
        steps = steps if sampler.steps is None else sampler.steps
    cfg = cfg if sampler.cfg is None else sampler.cfg
    check_number("steps", steps, OPTIONS["steps"])
    check_number("cfg", cfg, OPTIONS["cfg"])
    return steps, cfg


def _untrained(backbone: Backbone, student: Path, steps: int, cfg: float) -> list[str]:
    """Return sentences on what a student was not trained for; they belong beside its videos."""
    facts, size, found = read_facts(student), asdict(backbone.size), []
    if (trained := facts.get("steps")) and steps != trained:
        found.append(f"The student was trained for {trained} steps, and samples with {steps}.")
    video = facts.get("video") or size
    if any(video.get(name) != size[name] for name in ("frames", "height", "width")):
        first, last = (
            " x ".join(str(one.get(name)) for name in ("frames", "height", "width"))
            for one in (video, size)
        )
        found.append(f"The student was trained on {first}, and samples {last}.")
    if cfg != 1:
        found.append(
            f"The student was trained to sample without guidance, which cfg={cfg:g} adds: expect"
            " burnt colours."
        )
    return found


def _settings(backbone: Backbone, sampler: Sampler) -> dict:
    """Return what every video of a folder has in common, as its sampling.json says it."""
    steps, cfg = _steps_and_cfg(backbone, sampler)
    check_guidance(backbone, sampler.guidance)
    folder = sampler.student
    if sampler.negative and cfg == 1:
        raise ValueError(
            "the negative prompt has no effect with cfg=1, which is no guidance: leave it out, or"
            " give a guidance scale"
        )
    untrained = _untrained(backbone, folder, steps, cfg) if folder else []
    return {
        **({"untrained": untrained} if untrained else {}),
        "model": to_dict(backbone.config),  # as JSON holds it
        "video": asdict(backbone.size),
        "steps": steps,
        "cfg": cfg,
        "weights": folder and weights_of(folder),
        "student": folder and str(folder),
        "negative": sampler.negative or None,
        "shift": sampler.shift or None,
        **({} if sampler.cfg_2 is None else {"cfg_2": sampler.cfg_2}),
        **({"use_dynamic_cfg": True} if sampler.use_dynamic_cfg else {}),
    }


def _embed(
    shots: list[Shot], negative: str, backbone: Backbone, world: launch.World, root: Path
) -> Conditions:
    """Return the conditions of the shots and of the negative prompt; what encodes them is gone
    before the denoiser runs.
    """
    key = launch.broadcast_from_rank0(backbone.text_fingerprint() if world.primary else "")
    texts = EmbeddingCache(root, key)
    if world.primary:
        with without_warnings():
            embed_prompts(
                texts, [negative, *(shot.prompt for shot in shots)], backbone.encode_prompts
            )
    launch.barrier()
    backbone.release_text()
    if not backbone.takes_images:
        return Conditions(texts)
    key = launch.broadcast_from_rank0(backbone.image_fingerprint() if world.primary else "")
    images = EmbeddingCache(root, key)
    if world.primary:
        embed_images(images, {shot.image_sha256: Path(shot.image) for shot in shots}, backbone)
    launch.barrier()
    return Conditions(texts, images, {Path(shot.image): shot.image_sha256 for shot in shots})


def _cut(backbone: Backbone, shots: list[Shot], world: launch.World) -> dict[str, int]:
    """Return how many tokens are read of each prompt that is longer, and say how many there are."""
    prompts = list(dict.fromkeys(shot.prompt for shot in shots))
    cut = backbone.find_cut_prompts(prompts)
    if world.primary and (note := cut.note(prompts)):
        print(note, file=sys.stderr, flush=True)
    return {prompts[place]: cut.limit for place in cut.places}


def _write(
    out: Path,
    shots: list[Shot],
    videos: Tensor,
    backbone: Backbone,
    entries: dict[str, dict],
    rank: int,
) -> None:
    """Write each video [3, F, H, W] to its file, then its line to the rank's manifest."""
    for shot, video in zip(shots, videos, strict=True):
        try:
            if video.shape[1] == 1:
                write_image(out / shot.file, video[:, 0])
            else:
                write_video(out / shot.file, video, fps=backbone.size.fps)
        except ValueError as error:  # pixels that are not finite: of thousands, say which
            raise ValueError(
                f"{shot.file}, seed {shot.seed} of {shot.prompt!r}: {error};"
                f"{_other_dtype(backbone.config.dtype)} leave the prompt out"
            ) from error
        append_entry(out, rank, entries[shot.file])


def _other_dtype(dtype: str) -> str:
    if dtype == "float32":
        return ""
    return " compute in float32 (--dtype, or model.dtype of a config) with another --out, or"
