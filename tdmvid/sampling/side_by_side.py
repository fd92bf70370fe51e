"""A student beside its teacher: one sample of each from the same noise, with the time it took.

Shapes: the noise is [1, ...], a decoded video [1, 3, F, H, W].
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from ..adapters.bundle import read_facts
from ..backbones.base import Backbone
from ..config import check_number
from ..config.ranges import SEED
from ..data.conditions import Conditions
from ..data.items import Item
from ..data.video import write_image, write_video
from ..parallel import launch
from .sample import Sampler, embed_shots, pipeline_of, steps_and_cfg
from .shots import Shot, noise, plan_shots
from .student import stock_defaults


@dataclass(frozen=True)
class Made:
    """One sample and what it took."""

    name: str
    """"student" or "teacher"."""
    file: Path
    steps: int
    calls: int
    """Network calls; a guided step is two."""
    denoiser: float
    """Seconds."""
    autoencoder: float
    """Seconds."""

    @property
    def seconds(self) -> float:
        """Return the time of both stages."""
        return self.denoiser + self.autoencoder


@dataclass
class Clock:
    """Seconds between two points, with all work of the device done."""

    seconds: float = field(default=0.0)


@contextmanager
def timed(device: torch.device) -> Iterator[Clock]:
    """Measure the seconds that a block takes on the device."""
    clock = Clock()
    _wait(device)
    began = time.perf_counter()
    yield clock
    _wait(device)
    clock.seconds = time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def teacher_of(
    backbone: Backbone, student: Path, *, steps: int | None = None, cfg: float | None = None
) -> Sampler:
    """Return the teacher as its student has learned it: with its guidance, negative prompt and flow
    shift.

    An interval of guidance is left out, because no stock call has it.

    Args:
        backbone: the teacher's network.
        student: folder of the student, whose export.json says what it has learned.
        steps: number of steps; None takes the stock pipeline's default.
        cfg: guidance scale, of both experts; None takes what the student has learned.
    """
    long, usual = stock_defaults(backbone)
    learned = read_facts(student).get("teacher") or {"guidance": usual, "negative_prompt": ""}
    scale = learned["guidance"] if cfg is None else cfg
    return Sampler(
        steps=long if steps is None else steps,
        cfg=scale,
        negative=learned["negative_prompt"] if scale != 1 else "",
        shift=learned.get("shift", 0.0),
        cfg_2=learned.get("guidance_2") if cfg is None else None,
        use_dynamic_cfg=learned.get("use_dynamic_cfg", False) and scale != 1,
    )


def plan_sample(prompt: str, seed: int, image: str | None, *, backbone: Backbone) -> Shot:
    """Check what a user asks for and return it as a shot.

    Raises:
        ValueError: the prompt is empty, the seed is out of range, or the image that the model
            starts from is missing.
    """
    if not prompt.strip():
        raise ValueError("prompt is empty: describe what the sample should show")
    check_number("seed", seed, SEED)
    if backbone.takes_images and not image:
        raise ValueError("image is missing: this model starts from an image, choose one")
    item = Item(prompt, Path(image) if image and backbone.takes_images else None)
    (shot,) = plan_shots([item], [seed], frames=backbone.size.frames)
    return shot


def encode(
    shot: Shot, negative: str, *, backbone: Backbone, world: launch.World, cache: Path
) -> tuple[Conditions, float]:
    """Return the conditions of a sample and the seconds that encoding took; what is in the cache
    is not encoded again.
    """
    with timed(backbone.device) as clock:
        conds = embed_shots([shot], negative, backbone, world, cache)
    return conds, clock.seconds


def make(
    out: Path,
    shot: Shot,
    conds: Conditions,
    *,
    backbone: Backbone,
    sampler: Sampler,
    on_step: Callable[[int, int], object],
) -> Made:
    """Sample one shot with the stock pipeline and write it as a file.

    Args:
        out: folder of the file.
        shot: prompt and seed, from which the noise is drawn.
        conds: conditions of the prompt and of the negative prompt.
        backbone: the teacher's network.
        sampler: the student or the teacher.
        on_step: called after each step with the steps done and their number, if the stock
            pipeline has a callback.
    """
    steps, cfg = steps_and_cfg(backbone, sampler)
    pipeline = pipeline_of(backbone, sampler, steps)
    z = noise(shot.prompt, shot.seed, backbone.latent_shape())[None].to(backbone.device)
    cond = conds.get([shot.item]).to(backbone.device)
    null = conds.of_prompts([sampler.negative]).to(backbone.device) if cfg != 1 else None
    guidance = sampler.guidance | _callback(backbone, lambda done: on_step(done, steps))
    with timed(backbone.device) as denoiser:
        latents = backbone.stock.latents(
            pipeline, z, cond, steps=steps, cfg=cfg, null=null, guidance=guidance
        )
    with timed(backbone.device) as autoencoder:
        video = backbone.decode(latents)
    del pipeline
    gc.collect()  # it is in a cycle, which would keep the student's weights on the device
    name = "teacher" if sampler.student is None else "student"
    place = Path(shot.file)
    file = out / f"{place.stem}-{name}-{steps}steps{place.suffix}"
    if video.shape[2] == 1:
        write_image(file, video[0, :, 0].cpu())
    else:
        write_video(file, video[0].cpu(), fps=backbone.size.fps)
    calls = steps * (1 if cfg == 1 else 2)
    return Made(name, file, steps, calls, denoiser.seconds, autoencoder.seconds)


def _callback(backbone: Backbone, after_step: Callable[[int], object]) -> dict[str, Any]:
    """The argument of a stock call that reports each step, if the pipeline has it."""
    call = inspect.signature(getattr(diffusers, backbone.pipeline_class).__call__).parameters
    if "callback_on_step_end" not in call:
        return {}

    def report(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        after_step(index + 1)
        return tensors

    return {"callback_on_step_end": report}


def compare(made: list[Made], encoding: float) -> str:
    """Return a table in Markdown of the times of samples, the student first."""
    rows = {
        "steps": [str(one.steps) for one in made],
        "network calls": [str(one.calls) for one in made],
        "denoiser": [f"{one.denoiser:.2f} s" for one in made],
        "autoencoder": [f"{one.autoencoder:.2f} s" for one in made],
        "total": [f"{one.seconds:.2f} s" for one in made],
    }
    lines = [
        " | ".join(["| one sample", *(one.name for one in made), ""]),
        "|---" * (len(made) + 1) + "|",
        *(" | ".join([f"| {name}", *cells, ""]) for name, cells in rows.items()),
    ]
    notes = [f"Prompt encoding: {encoding:.2f} s; a prompt that was used before is not encoded."]
    if len(made) == 2:
        student, teacher = made
        notes.insert(
            0,
            "Time of the teacher divided by the student's: denoiser"
            f" {teacher.denoiser / student.denoiser:.1f}, total"
            f" {teacher.seconds / student.seconds:.1f}.",
        )
    return "\n".join([*lines, "", *notes])
