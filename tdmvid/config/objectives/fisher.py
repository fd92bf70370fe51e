"""Settings of the Fisher variant of TDM; distill/fisher.py has the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..rules import Rule
from .base import register_settings
from .tdm import TDM_RULES, TDMSettings

NO_DISTANCE = "has no effect with kind={kind}: leave it out, or use kind 'tdm'"
FISHER_RULES = (
    *TDM_RULES,
    Rule(lambda objective: objective.distance != "huber", "objective.distance", NO_DISTANCE),
    Rule(lambda objective: objective.huber_c is not None, "objective.huber_c", NO_DISTANCE),
)


@register_settings
@dataclass(frozen=True)
class FisherSettings(TDMSettings):
    """TDM's settings but for the distance; the student follows the Fisher divergence."""

    kind: Literal["fisher"] = "fisher"  # type: ignore[assignment]
    fake_target: Literal["x0_hat", "exact"] = "exact"
    """The identity holds for the score of the trajectory itself, which the exact target has as its
    optimum.
    """

    rules: ClassVar[tuple[Rule, ...]] = FISHER_RULES
    through_scores: ClassVar[bool] = True
