"""Quantize the frozen base of a run, and measure how this changes teacher and student."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.base import Backbone
from ..backbones.quantize import held_bytes, quantize
from ..config import QuantizeKind, RunConfig
from ..config.json_files import read_object
from ..data.files import write_json
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from .guidance import guide

GIB = 2**30


@dataclass(frozen=True)
class Rounding:
    """Effect of quantizing a base.

    Differences are root mean squares relative to the output of the unquantized base.
    """

    kind: QuantizeKind
    whole: int
    held: int
    """Bytes of the network's parameters before (`whole`) and after quantization."""
    times: tuple[float, ...]
    errors: tuple[float, ...]
    """Relative change of the teacher's guided x0 prediction, at each time of the student's grid."""
    student: float | None = None
    """Relative change of the trained student's final latents when it moves to the unquantized base.

    None before training ends.
    """

    def __str__(self) -> str:
        at = ", ".join(f"{error:.2%} at t = {t:.3g}" for t, error in zip(self.times, self.errors))
        held = f"{self.held / GIB:.3g} GiB instead of {self.whole / GIB:.3g} GiB"
        return f"frozen base in {self.kind}: {held}; the teacher's x0 prediction changes by {at}"

    def save(self, folder: Path) -> None:
        """Write quantized.json to a run's folder."""
        write_json(folder / "quantized.json", asdict(self))


@torch.no_grad()
def quantize_base(
    config: RunConfig, backbone: Backbone, grid: TimeGrid, cond: Cond, null: Cond
) -> Rounding:
    """Quantize the backbone's network in place, and measure the change of the teacher's prediction.

    The measurement takes at most one micro-batch, with one guided call per time before and after
    quantization. The first call is on pure noise, the others on the unquantized teacher's
    prediction, noised to their times.

    Args:
        config: The run's config.
        backbone: The teacher.
        grid: The student's times.
        cond: Conditions of prompts; at most one micro-batch is used.
        null: Condition of the unconditional branch, one row.

    Returns:
        Sizes and errors.
    """
    network, times = backbone.network, grid.descending()
    cond = cond.rows(slice(config.batch.micro))
    generator = torch.Generator(backbone.device).manual_seed(config.log.seed)
    z = torch.randn(
        (cond.batch, *backbone.latent_shape()), generator=generator, device=backbone.device
    )
    teacher = guide(config, backbone.denoiser(network), null, boundary=grid.boundary)
    first_time, *other_times = [torch.full((len(z),), t, device=z.device) for t in times]
    first = teacher(z, first_time, cond)
    noised = [(backbone.process.noise(first, z, t), t) for t in other_times]
    seen = [(z, first_time), *noised]
    before = [first, *(teacher(x_t, t, cond) for x_t, t in noised)]
    whole = held_bytes(network)
    quantize(network, backbone.spec.blocks(network), config.model.quantize)
    errors = (
        difference(teacher(x_t, t, cond), expected) for (x_t, t), expected in zip(seen, before)
    )
    return Rounding(config.model.quantize, whole, held_bytes(network), tuple(times), tuple(errors))


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of found - expected, relative to that of `expected`.

    Args:
        found, expected: Tensors of the same shape, [B, ...].
    """
    return ((found - expected).norm() / expected.norm()).item()


def story(folder: Path) -> str:
    """Return the model card's sentence about a quantized base, with a leading space.

    Args:
        folder: The run's folder.

    Returns:
        The sentence; empty if the base was not quantized.
    """
    path = folder / "quantized.json"
    if not path.is_file():
        return ""
    facts = read_object(path)
    student = (
        f" and, when the student was moved to the unquantized base, its latents by"
        f" {facts['student']:.2%}"
        if facts["student"] is not None
        else ""
    )
    return (
        f" Its frozen base was quantized to {facts['kind']} during training. This changed the"
        f" teacher's x0 predictions by up to {max(facts['errors']):.2%}{student}."
    )
