"""Settings of TDM with an adversarial term. The mathematics is in distill/gan.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ranges import ranges_of
from ..rules import Rule
from .base import register_settings
from .tdm import TDM_RULES, TDMSettings

GAN_RULES = (*TDM_RULES, *ranges_of("objective", ("weight",)))


@register_settings
@dataclass(frozen=True)
class GANSettings(TDMSettings):
    """Settings of TDM plus those of the adversarial term."""

    title: ClassVar[str] = f"{TDMSettings.title} with an adversarial term"
    kind: Literal["gan"] = "gan"  # type: ignore[assignment]
    """Distillation method."""
    adversarial: Literal["logistic", "hinge"] = "hinge"
    """Adversarial loss of discriminator and student: `logistic` or `hinge`."""
    weight: float = 0.1
    """Weight of the student's adversarial loss relative to the matching loss, 0 or more. 0 trains
    only the discriminator.
    """

    rules: ClassVar[tuple[Rule, ...]] = GAN_RULES

    @property
    def roles(self) -> tuple[str, ...]:
        """Fake and discriminator, then the student, which sees both updated."""
        return ("fake",) * self.fake_updates + ("discriminator", "student")
