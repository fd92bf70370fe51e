"""kohya-ss/sd-scripts and the programs that read its names."""

from __future__ import annotations

from ...adapters.layouts import KOHYA
from .base import Consumer, register


@register
class Kohya(Consumer):
    """Loads `lora_unet_...` files."""

    layout = KOHYA

    def card_text(self, facts: dict) -> str:
        return "programs that want kohya's names (`lora_unet_...`)"
