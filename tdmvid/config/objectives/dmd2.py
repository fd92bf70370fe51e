"""Settings of DMD2 (arXiv 2405.14867); distill/dmd2.py describes the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .base import Solver, register_settings
from .tdm import TDMSettings


@register_settings
@dataclass(frozen=True)
class DMD2Settings(TDMSettings):
    """The defaults are DMD2's; its adversarial term is the kind `gan` with these settings."""

    kind: Literal["dmd2"] = "dmd2"  # type: ignore[assignment]
    match: Literal["noisy", "clean"] = "clean"
    solver: Solver = "renoise"
    segments: Literal["separate", "to_terminal", "everywhere"] = "everywhere"
    margin_high: float = 0.02
    fake_updates: int = 5
