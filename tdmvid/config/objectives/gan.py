"""Settings of TDM with an adversarial term; distill/gan.py has the mathematics."""

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
    """TDM's settings, and those of the adversarial term."""

    kind: Literal["gan"] = "gan"  # type: ignore[assignment]
    adversarial: Literal["logistic", "hinge"] = "hinge"
    """Loss of the adversarial term: hinge or logistic."""
    weight: float = 0.1
    """Of L_G beside the matching loss."""

    rules: ClassVar[tuple[Rule, ...]] = GAN_RULES

    @property
    def roles(self) -> tuple[str, ...]:
        """Fake and discriminator first: the student sees both updated."""
        return ("fake",) * self.fake_updates + ("discriminator", "student")
