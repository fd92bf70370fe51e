"""kohya-ss/sd-scripts and programs that use its key names."""

from __future__ import annotations

from ...adapters.layouts import KOHYA
from .base import Consumer, register


@register
class Kohya(Consumer):
    """Programs that load `lora_unet_...` files."""

    layout = KOHYA

    def card_text(self, facts: dict) -> str:
        """Return for which programs the file is."""
        return "programs that use kohya's key names (`lora_unet_...`)"
