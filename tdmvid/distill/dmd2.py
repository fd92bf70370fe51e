"""DMD2 (arXiv 2405.14867), the baseline: distributions of clean predictions are matched, at any
noise level.

The student re-noises its prediction between steps ("backward simulation"), so each step's
prediction has one law whatever came before, and tau ranges over all times for every step.
The fake gets several updates for each of the student's, which stands in for a second time scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..diffusion.sampler import Solver
from .objective import register
from .tdm import TDM


@register
@dataclass(frozen=True)
class DMD2(TDM):
    """The defaults are DMD2's; its adversarial term is the kind `gan` with these settings."""

    kind: Literal["dmd2"] = "dmd2"
    match: Literal["noisy", "clean"] = "clean"
    solver: Solver = "renoise"
    segments: Literal["separate", "to_terminal", "everywhere"] = "everywhere"
    margin_high: float = 0.02
    fake_updates: int = 5
