"""Names of a network's modules in LoRA files, in every layout that can be read.

| layout | names |
|---|---|
| diffusers | `transformer.<module>`, `unet.<module>` |
| peft | `base_model.model.<module>` |
| comfyui | `diffusion_model.<original or diffusers module>` |
| kohya | `lora_unet_`, `lora_unet__`, `lora_transformer_` + either module name, "_" for "." |
| bare | `<module>` |

Files for ComfyUI may hold several modules as one layer, see joined.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .joined import Joined, Joining, join_flux, join_flux2, join_qkv, join_sd3
from .ldm import name_ldm
from .original import name_cogvideox, name_hunyuan, name_wan
from .original_images import name_flux, name_flux2, name_sd3, name_z_image

DIFFUSERS, PEFT, COMFY, KOHYA_STYLE, BARE = "diffusers", "peft", "comfyui", "kohya", "bare"
_IMAGES = {
    "FluxPipeline": name_flux,
    "Flux2": name_flux2,
    "StableDiffusion3": name_sd3,
    "ZImage": name_z_image,
}
"""Start of a pipeline class -> its modules' names in the model's original repository."""
_WRAPPERS = ("module.", "base_model.model.")


@dataclass(frozen=True)
class ModuleName:
    """The meaning of a module name in a file."""

    layout: str
    module: str
    """Name of the module in diffusers' network, or of the joint layer."""
    joint: Joined | None = None
    """The layer, if it holds several modules or has another order; else None."""


class ModuleNames:
    """Finds a network's modules by their names in files.

    Args:
        modules: Names in diffusers' network, with the numbers of their outputs.
        part: Component of the pipeline, "transformer" or "unet".
        others: Maps a module's name to those in the model's original repository and in ComfyUI.
        joining: Which modules a file may hold as one layer.
    """

    def __init__(
        self,
        modules: Mapping[str, int],
        part: str,
        others: Callable[[str], tuple[str, ...]],
        joining: Joining | None = None,
    ):
        self._known: dict[str, ModuleName] = {}
        for module in modules:
            joint = joining(module) if joining else None
            if joint is not None and all(one in modules for one in joint.parts):
                joint = replace(joint, sizes=tuple(modules[one] for one in joint.parts))
                for layout, name in _names(joint.name, part, others(joint.name)):
                    self._known.setdefault(name, ModuleName(layout, joint.name, joint))
            for layout, name in _names(module, part, others(module)):
                self._known.setdefault(name, ModuleName(layout, module))

    def find(self, name: str) -> ModuleName | None:
        """Return layout and module of a name, or None if it names no module of the network."""
        wrapped, layout = name, ""
        while name.startswith(_WRAPPERS):
            layout = PEFT if name.startswith("base_model.") else layout
            name = name.removeprefix("module.").removeprefix("base_model.model.")
        found = self._known.get(name)
        if found is None and layout:  # peft's wrapper around the original network
            found = self._known.get(f"diffusion_model.{name}")
        if found is None or name == wrapped or not layout:
            return found
        return replace(found, layout=layout)


def _names(module: str, part: str, others: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    yield DIFFUSERS, f"{part}.{module}"
    yield BARE, module
    for dotted in (*others, module):
        yield COMFY, f"diffusion_model.{dotted}"
        yield COMFY, f"model.diffusion_model.{dotted}"
        for prefix in ("lora_unet_", "lora_unet__", f"lora_{part}_"):
            yield KOHYA_STYLE, prefix + dotted.replace(".", "_")


def module_names(network: nn.Module, pipeline_class: str, part: str) -> ModuleNames:
    """Return the names of all modules of a network that have parameters of their own.

    Args:
        network: The network, on any device.
        pipeline_class: Its diffusers pipeline class.
        part: Component of the pipeline, "transformer" or "unet".
    """
    modules = {}
    for name, module in network.named_modules():
        own = next(module.parameters(recurse=False), None)
        if name and own is not None:
            modules[name] = getattr(module, "out_features", own.shape[0] if own.dim() else 0)
    others, joining = other_names(network, pipeline_class), _joining(modules, pipeline_class)
    return ModuleNames(modules, part, others, joining)


def _joining(modules: Iterable[str], pipeline_class: str) -> Joining | None:
    """Return which modules of a family other programs hold as one layer."""
    if pipeline_class.startswith(("HunyuanVideo", "ZImage")):
        return join_qkv
    if pipeline_class == "FluxPipeline":
        return join_flux
    if pipeline_class.startswith("Flux2"):
        return join_flux2
    if pipeline_class.startswith("StableDiffusion3"):
        return join_sd3(modules)
    return None


def other_names(network: nn.Module, pipeline_class: str) -> Callable[[str], tuple[str, ...]]:
    """Return a function that maps diffusers' module names to those of other repositories."""
    if pipeline_class.startswith("CogVideoX"):
        return lambda name: (name_cogvideox(name),)
    if pipeline_class.startswith("Wan"):
        return lambda name: (name_wan(name),)
    if pipeline_class.startswith("HunyuanVideo"):
        return lambda name: tuple(name_hunyuan(name, comfyui=one) for one in (True, False))
    for start, name_image in _IMAGES.items():
        if pipeline_class.startswith(start):
            return lambda name: (name_image(name),)
    if pipeline_class.startswith("StableDiffusion") and hasattr(network, "up_blocks"):
        unet: Any = network
        ups = frozenset(i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions"))
        layers = unet.config.layers_per_block
        return lambda name: (name_ldm(name, layers, ups),)
    return lambda name: (name,)


__all__ = ["BARE", "COMFY", "DIFFUSERS", "KOHYA_STYLE", "PEFT", "ModuleNames", "module_names"]
