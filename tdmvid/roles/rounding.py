"""A quantised base beside the whole one: what rounding its weights changed of the teacher, and what
of the student.
"""

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
    """What quantising a base changed.

    Differences are root mean squares relative to the size of what the whole base gives.
    """

    kind: QuantizeKind
    whole: int
    held: int
    """Bytes of the network's parameters before and after."""
    times: tuple[float, ...]
    errors: tuple[float, ...]
    """Of the teacher's clean prediction, guided as in training, at each time of the student's grid.
    """
    student: float | None = None
    """Of the trained student's final latents, when it leaves the base it was trained on; None until
    it is trained.
    """

    def __str__(self) -> str:
        at = ", ".join(f"{error:.2%} at t = {t:.3g}" for t, error in zip(self.times, self.errors))
        held = f"{self.held / GIB:.3g} GiB for {self.whole / GIB:.3g}"
        return f"frozen base in {self.kind}: {held}; the teacher's clean prediction is off by {at}"

    def save(self, folder: Path) -> None:
        """Write quantized.json of a run folder."""
        write_json(folder / "quantized.json", asdict(self))


@torch.no_grad()
def quantize_base(
    config: RunConfig, backbone: Backbone, grid: TimeGrid, cond: Cond, null: Cond
) -> Rounding:
    """Quantise the backbone's network in place, and measure what that changes.

    On one micro-batch at most, with one guided call a time and side: of pure noise first, then of
    the whole teacher's prediction from that, noised to the other times.

    Returns:
        What changed.
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
    """Return the root mean square of what differs, relative to that of `expected`."""
    return ((found - expected).norm() / expected.norm()).item()


def story(folder: Path) -> str:
    """What a card says of the base that a run was trained on, after a space; empty if it was not
    quantised.
    """
    path = folder / "quantized.json"
    if not path.is_file():
        return ""
    facts = read_object(path)
    student = (
        f", and the student's latents by {facts['student']:.2%} when it was put on the whole one"
        if facts["student"] is not None
        else ""
    )
    return (
        f" Its frozen base was rounded to {facts['kind']} while it trained, which moved the"
        f" teacher's clean predictions by up to {max(facts['errors']):.2%}{student}."
    )
