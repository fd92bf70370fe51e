"""Settings of the Fisher variant of TDM. The mathematics is in distill/fisher.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..rules import Rule
from .base import register_settings
from .tdm import TDM_RULES, TDMSettings

NO_DISTANCE = "has no effect with kind={kind}: remove it, or use kind 'tdm'"
FISHER_RULES = (
    *TDM_RULES,
    Rule(lambda objective: objective.distance != "huber", "objective.distance", NO_DISTANCE),
    Rule(lambda objective: objective.huber_c is not None, "objective.huber_c", NO_DISTANCE),
)


@register_settings
@dataclass(frozen=True)
class FisherSettings(TDMSettings):
    """Settings of TDM for a student that minimises the Fisher divergence instead of the reverse KL.

    `distance` and `huber_c` do not apply; values other than the defaults are refused.
    """

    title: ClassVar[str] = f"{TDMSettings.title} with the Fisher divergence"
    kind: Literal["fisher"] = "fisher"  # type: ignore[assignment]
    """Distillation method."""
    fake_target: Literal["x0_hat", "exact"] = "exact"
    """Regression target of the fake: `x0_hat`, the student's clean prediction; `exact`, the exact
    conditional score. The Fisher gradient assumes a fake that is the score of the trajectory, and
    only the exact target has this score as its optimum.
    """

    rules: ClassVar[tuple[Rule, ...]] = FISHER_RULES
    through_scores: ClassVar[bool] = True
