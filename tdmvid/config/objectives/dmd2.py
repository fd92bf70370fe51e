"""Settings of DMD2 (arXiv 2405.14867). The method is in distill/dmd2.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..rules import Rule
from .base import Solver, register_settings
from .tdm import FRESH_RULE, TDM_RULES, TDMSettings

# fake_trajectories defaults to 'fresh' here, and must stay valid when only fake_updates=1 is set.
DMD2_RULES = tuple(rule for rule in TDM_RULES if rule is not FRESH_RULE)


@register_settings
@dataclass(frozen=True)
class DMD2Settings(TDMSettings):
    """Settings of TDM with the defaults of DMD2.

    For DMD2's adversarial term, use kind `gan` with these values.
    """

    title: ClassVar[str] = "DMD2 without its adversarial term (arXiv 2405.14867)"
    kind: Literal["dmd2"] = "dmd2"  # type: ignore[assignment]
    """Distillation method."""
    match: Literal["noisy", "clean"] = "clean"
    """Sample that is noised to tau: `noisy`, the next state x_s; `clean`, the clean prediction."""
    solver: Solver = "renoise"
    """Solver of the student's trajectory: `renoise`, `ddim` or `dpm++`. DMD2 adds fresh noise to
    each clean prediction (`renoise`).
    """
    segments: Literal["separate", "to_terminal", "everywhere"] = "everywhere"
    """Range of tau: `separate`, [s_{k-1}, s_k]; `to_terminal`, [s_{k-1}, s_K]; `everywhere`,
    (0, 1].
    """
    margin_high: float = 0.02
    """Smallest distance of tau from the upper end of its range, in [0, 1)."""
    fake_updates: int = 5
    """Updates of the fake per update of the student, 1 to 1000."""
    fake_trajectories: Literal["same", "fresh"] = "fresh"
    """`same`: all updates of the fake use the student's trajectories. `fresh`: all updates of the
    fake except the last roll out new trajectories of the same prompts.
    """

    rules: ClassVar[tuple[Rule, ...]] = DMD2_RULES
