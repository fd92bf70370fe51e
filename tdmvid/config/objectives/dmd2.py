"""Settings of DMD2 (arXiv 2405.14867); distill/dmd2.py describes the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..rules import Rule
from .base import Solver, register_settings
from .tdm import FRESH_RULE, TDM_RULES, TDMSettings

# `fresh` is the default here, and one update of the fake may be asked for alone
DMD2_RULES = tuple(rule for rule in TDM_RULES if rule is not FRESH_RULE)


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
    fake_trajectories: Literal["same", "fresh"] = "fresh"

    rules: ClassVar[tuple[Rule, ...]] = DMD2_RULES
