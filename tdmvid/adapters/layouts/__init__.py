"""Key layouts of LoRA files for other programs, one file per program.

A state dict here is in diffusers' layout: `<module>.lora_A.weight` [r, in],
`<module>.lora_B.weight` [out, r] and, with peft's `lora_bias`, `<module>.lora_B.bias` [out]. Every
layer adds alpha / r * (B A x + bias).

| layout | keys | alpha |
|---|---|---|
| diffusers | `transformer.<module>.lora_A.weight` (UNets: `unet.`) | in the file's metadata |
| comfyui | `<stem>.lora_A.weight`, `.lora_B.weight`, bias as `.diff_b` | `<stem>.alpha`, else r |
| kohya | `<stem>.lora_down.weight`, `.lora_up.weight` | `<stem>.alpha`, else r |

Files written for other programs have alpha = r, with the scale multiplied into B.
"""

from .base import KeyLayout, adapted_modules
from .comfyui import COMFYUI
from .kohya import KOHYA

LAYOUTS: dict[str, KeyLayout] = {layout.name: layout for layout in (COMFYUI, KOHYA)}
"""Layout by name."""


def layouts_of(pipeline_class: str) -> dict[str, KeyLayout]:
    """Return the layouts that support a diffusers pipeline class, by name."""
    return {name: layout for name, layout in LAYOUTS.items() if pipeline_class in layout.stems}


__all__ = ["COMFYUI", "KOHYA", "LAYOUTS", "KeyLayout", "adapted_modules", "layouts_of"]
