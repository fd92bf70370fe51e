"""Sample videos of a list of prompts from a teacher or a few-step student, on any number of ranks.

Existing videos are not made again. The noise of a video is a function of (seed, prompt), so batch,
rank and order do not change it. Sampling uses the stock diffusers pipeline, with the scheduler next
to the student.

Shapes: B videos of a batch, C latent channels, F frames, H W latent size.
"""

from __future__ import annotations

import gc
import hashlib
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapters.bundle import read_facts
from ..backbones.base import Backbone
from ..backbones.encoded_images import embed_images
from ..backbones.text_limit import without_warnings
from ..config import check_number, to_dict
from ..config.ranges import OPTIONS
from ..data.conditions import Conditions
from ..data.embeddings import PATIENCE, EmbeddingCache, embed_prompts
from ..data.progress import QUICK, progress
from ..data.saved_work import note_saved_work
from ..data.video import write_image, write_video
from ..parallel import collectives, launch
from .manifest import (
    append_entry,
    claim_folder,
    describing_interrupt,
    entry_of,
    finish_folder,
)
from .shots import Shot, noise
from .student import check_guidance, set_flow_shift, stock_defaults, use_student, weights_of


@dataclass(frozen=True)
class Sampler:
    """What to sample with: the teacher, or the student (LoRA or network) in a folder."""

    student: Path | None = None
    steps: int | None = None
    """Number of steps. None uses the student's, or the stock pipeline's default for a teacher."""
    cfg: float | None = None
    """Guidance scale. None uses 1 (off) for a student, the pipeline's default for a teacher."""
    negative: str = ""
    """Negative prompt of the guidance."""
    shift: float = 0.0
    """Flow shift of a teacher's times; 0 keeps that of the model's own scheduler."""
    cfg_2: float | None = None
    """`guidance_scale_2` of the stock call, for a teacher with two experts."""
    use_dynamic_cfg: bool = False
    """`use_dynamic_cfg` of CogVideoX's stock call."""

    @property
    def guidance(self) -> dict[str, Any]:
        """Arguments of the stock call that make guidance depend on time."""
        second = {} if self.cfg_2 is None else {"guidance_scale_2": self.cfg_2}
        return second | ({"use_dynamic_cfg": True} if self.use_dynamic_cfg else {})


CACHE = Path("cache/embeddings")
"""Default folder of cached text embeddings."""


def sample_videos(
    out: Path,
    shots: list[Shot],
    *,
    backbone: Backbone,
    sampler: Sampler,
    world: launch.World,
    batch: int = 1,
    cache: Path = CACHE,
) -> list[dict]:
    """Make the videos that `out` lacks; each rank makes its share.

    Args:
        out: The folder of videos.
        shots: The videos, each with prompt, seed and file name.
        backbone: The teacher.
        sampler: What to sample with.
        world: The processes.
        batch: Number of videos at a time on each rank.
        cache: Folder of cached text embeddings.

    Returns:
        Manifest entries, in the order of `shots`.

    Raises:
        ValueError: `out` contains videos of other settings or prompts, or the settings do not suit
            the model.
    """
    check_number("batch", batch, OPTIONS["batch"])
    if backbone.takes_images and any(not shot.image for shot in shots):
        raise ValueError(
            f"model={backbone.config.path!r} needs an image for each prompt: use `tdmvid sample`"
            " with images"
        )
    digest = hashlib.sha256(repr(shots).encode()).hexdigest()[:16]
    collectives.check_same("list of prompts", {"videos": digest})
    settings = _settings(backbone, sampler)
    done = claim_folder(out, settings, shots) if world.primary else None
    for line in settings.get("untrained", ()) if world.primary else ():
        print(line, flush=True)
    # Machines may temporarily see different contents of a shared folder, so rank 0 decides.
    done = collectives.broadcast_from_rank0(done)
    todo = [shot for shot in shots if shot.file not in done]
    cut = _cut(backbone, shots, world)
    entries = {shot.file: entry_of(shot, settings, cut) for shot in shots}
    if todo:
        with describing_interrupt(out, shots) if world.primary else nullcontext():
            conds = embed_shots(todo, sampler.negative, backbone, world, cache)
            _sample_share(out, todo, backbone, sampler, conds, entries, world, batch)
        # A reference cycle would keep the pipeline's weights on the device.
        gc.collect()
    collectives.barrier()
    made = [entries[shot.file] for shot in shots]
    if world.primary:
        finish_folder(out, made)
    collectives.barrier()
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
    """Sample this rank's share of the shots, one batch at a time."""
    steps, cfg = steps_and_cfg(backbone, sampler)
    pipeline = pipeline_of(backbone, sampler, steps)
    pipeline.set_progress_bar_config(
        desc="steps", leave=False, delay=QUICK, disable=not world.primary
    )
    null = conds.of_prompts([sampler.negative]).to(world.device) if cfg != 1 else None
    mine = todo[world.rank :: world.size]
    with progress("sampling", total=len(mine), unit="video") as bar:
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


def pipeline_of(backbone: Backbone, sampler: Sampler, steps: int | None = None) -> Any:
    """Return the stock pipeline of a sampler, with its student or its flow shift.

    Args:
        backbone: The base.
        sampler: What to sample with.
        steps: Number of steps; None uses that of the student.

    Raises:
        ValueError: The student cannot be loaded, or the model has no flow shift.
    """
    pipeline = use_student(backbone, sampler.student, steps=steps)
    if sampler.shift:
        set_flow_shift(pipeline, sampler.shift)
    return pipeline


def steps_and_cfg(backbone: Backbone, sampler: Sampler) -> tuple[int, float]:
    """Return the number of steps and the guidance scale of a sampler, defaults filled in.

    Raises:
        ValueError: one is out of range, or a student does not state its steps.
    """
    if sampler.student is not None:
        trained = read_facts(sampler.student).get("steps")
        steps = trained if sampler.steps is None else sampler.steps
        if steps is None:
            raise ValueError(
                f"{sampler.student} does not state how many steps it was trained for: set steps"
            )
        cfg = 1.0
    else:
        steps, cfg = stock_defaults(backbone)
        steps = steps if sampler.steps is None else sampler.steps
    cfg = cfg if sampler.cfg is None else sampler.cfg
    check_number("steps", steps, OPTIONS["steps"])
    check_number("cfg", cfg, OPTIONS["cfg"])
    if sampler.cfg_2 is not None:
        check_number("cfg_2", sampler.cfg_2, OPTIONS["cfg_2"])
    return steps, cfg


def find_untrained(backbone: Backbone, student: Path, steps: int, cfg: float) -> list[str]:
    """Return sentences about settings that a student was not trained for."""
    facts, size, found = read_facts(student), asdict(backbone.size), []
    if (trained := facts.get("steps")) and steps != trained:
        found.append(f"The student was trained for {trained} steps, but samples with {steps}.")
    video = facts.get("video") or size
    if any(video.get(name) != size[name] for name in ("frames", "height", "width")):
        first, last = (
            " x ".join(str(one.get(name)) for name in ("frames", "height", "width"))
            for one in (video, size)
        )
        found.append(f"The student was trained on {first}, but samples {last}.")
    if cfg != 1:
        found.append(
            f"The student was trained to sample without guidance, but cfg={cfg:g} adds it: expect"
            " over-saturated colours."
        )
    return found


def check_sampler(sampler: Sampler, cfg: float | None = None) -> None:
    """Check settings that have no effect together. This needs no model.

    Args:
        sampler: What to sample with.
        cfg: Guidance scale; None uses the sampler's, or 1 for a student.

    Raises:
        ValueError: A setting has no effect.
    """
    if cfg is None:
        cfg = 1.0 if sampler.cfg is None and sampler.student else sampler.cfg
    if sampler.negative and cfg == 1:
        raise ValueError(
            "the negative prompt has no effect without guidance (cfg=1): omit it, or set a guidance"
            " scale"
        )
    if sampler.cfg_2 is not None and cfg == 1:
        raise ValueError(
            f"cfg_2={sampler.cfg_2:g} has no effect with cfg=1, which turns guidance off for both"
            " experts: omit it, or set cfg"
        )
    if sampler.shift and sampler.student:
        raise ValueError(
            f"shift={sampler.shift:g} has no effect on a student, whose scheduler has the times it"
            " was trained with: omit it"
        )


def _settings(backbone: Backbone, sampler: Sampler) -> dict:
    """Return the settings that all videos of a folder share, as stored in sampling.json."""
    steps, cfg = steps_and_cfg(backbone, sampler)
    check_guidance(backbone, sampler.guidance)
    check_sampler(sampler, cfg)
    folder = sampler.student
    if sampler.shift:  # refused before the folder is claimed
        pipeline_of(backbone, sampler)
    untrained = find_untrained(backbone, folder, steps, cfg) if folder else []
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


def embed_shots(
    shots: list[Shot], negative: str, backbone: Backbone, world: launch.World, root: Path
) -> Conditions:
    """Return the conditions of the shots and of the negative prompt, and release the encoders."""
    key = collectives.broadcast_from_rank0(backbone.text_fingerprint() if world.primary else "")
    texts = EmbeddingCache(root, key)
    if world.primary:
        with without_warnings():
            embed_prompts(
                texts, [negative, *(shot.prompt for shot in shots)], backbone.encode_prompts
            )
    collectives.barrier()
    _check_seen(texts, [negative, *(shot.prompt for shot in shots)])
    backbone.release_text()
    if not backbone.takes_images:
        return Conditions(texts)
    key = collectives.broadcast_from_rank0(backbone.image_fingerprint() if world.primary else "")
    images = EmbeddingCache(root, key)
    if world.primary:
        embed_images(images, {shot.image_sha256: Path(shot.image) for shot in shots}, backbone)
    collectives.barrier()
    _check_seen(images, [shot.image_sha256 for shot in shots])
    return Conditions(texts, images, {Path(shot.image): shot.image_sha256 for shot in shots})


def _check_seen(cache: EmbeddingCache, names: list[str]) -> None:
    """Wait until a shared file system shows what the first rank has written."""
    if missing := cache.missing(names, patience=PATIENCE):
        raise ValueError(
            f"{cache.folder} lacks {len(missing)} embeddings that the first rank wrote: choose a"
            " --cache on a file system that all machines share"
        )


def _cut(backbone: Backbone, shots: list[Shot], world: launch.World) -> dict[str, int]:
    """Return prompt -> token limit for truncated prompts, and print how many there are."""
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
    """Write each video [3, F, H, W] to its file, and then its entry to this rank's manifest."""
    for shot, video in zip(shots, videos, strict=True):
        try:
            if video.shape[1] == 1:
                write_image(out / shot.file, video[:, 0])
            else:
                write_video(out / shot.file, video, fps=backbone.size.fps)
        except ValueError as error:  # non-finite pixels: name the video
            raise ValueError(
                f"{shot.file}, seed {shot.seed} of {shot.prompt!r}: {error};"
                f"{_other_dtype(backbone.config.dtype)} omit the prompt"
            ) from error
        append_entry(out, rank, entries[shot.file])
        note_saved_work()


def _other_dtype(dtype: str) -> str:
    if dtype == "float32":
        return ""
    return " use float32 (--dtype, or model.dtype of a config) with another --out, or"
