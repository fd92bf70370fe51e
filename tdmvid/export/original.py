"""Compare the export of a published LoRA with what stock code makes of its original file."""

from __future__ import annotations

import gc
import importlib.metadata
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from ..adapters.layouts.names import BARE, COMFY, DIFFUSERS, KOHYA_STYLE, PEFT
from ..adapters.load import adapted_layers, check_loaded
from ..adapters.read import read_lora
from ..adapters.settings import PEFT_FILE, SETTINGS_FILE
from ..adapters.tensors import read_tensors
from ..adapters.weights import LoraWeights
from ..backbones.base import Backbone
from .check import Agreement
from .student import Student

CONVERTS = ("Wan", "FluxPipeline", "ZImage")
"""Starts of pipeline classes whose loader reads the names of kohya and of ComfyUI."""
_STOCK_ERRORS = (
    ValueError,
    KeyError,
    RuntimeError,
    IndexError,
    AttributeError,
    AssertionError,
)
"""What stock loaders raise about a file that they do not support."""


class NotStock(Exception):
    """Stock code does not load a file, or only part of it."""


def compare_with_original(student: Student, lora: LoraWeights, tolerance: float) -> dict[str, Any]:
    """Compare a student with stock diffusers or peft, which load the LoRA's own file.

    Args:
        student: The student, with the LoRA attached.
        lora: The LoRA as it was read, including the scale at which it is used.
        tolerance: Allowed relative difference of latents.

    Returns:
        `by`, the library and its version, and `error`; or `not_compared`, the reason.

    Raises:
        RuntimeError: The difference is above the tolerance.
    """
    backbone = student.backbone
    pipeline = backbone.stock.pipeline()
    try:
        for part, own in _by_part(pipeline, lora, backbone):
            library = _load_original(pipeline, own, part)
            check_loaded(getattr(pipeline, part), own)
    except NotStock as reason:
        return {"not_compared": str(reason)}
    pipeline.scheduler = backbone.student_scheduler(student.grid)
    reference, steps = student.reference, student.grid.steps
    found: Tensor = backbone.stock.latents(pipeline, reference.z, reference.cond, steps=steps)
    del pipeline
    gc.collect()  # a reference cycle would keep its base on the device
    error = Agreement.of(student.latents, found).error
    if not error <= tolerance:
        raise RuntimeError(
            f"{lora.where}: the student's samples differ by {error:.2e} (relative; tolerance"
            f" {tolerance:.0e}) from those of stock {library} with this file: check --scale and the"
            " base, or raise --tolerance"
        )
    return {"by": f"{library} {importlib.metadata.version(library)}", "error": error}


def describe_comparison(original: dict[str, Any]) -> str:
    """Return the model card's sentence about a comparison, with a leading space."""
    if "error" not in original:
        return f" Not compared with the original file: {original['not_compared']}."
    return (
        f" Relative difference from the samples of stock {original['by']} with the published file:"
        f" {original['error']:.1e}."
    )


def _by_part(
    pipeline: Any, lora: LoraWeights, backbone: Backbone
) -> Iterator[tuple[str, LoraWeights]]:
    """Yield the LoRA, or that of each expert, by the pipeline's component that it adapts."""
    files = backbone.lora.of_pipeline(pipeline)
    if len(files) == 1:
        yield backbone.lora.part, lora
        return
    for one in files:
        own = read_lora(Path(lora.where), one, getattr(pipeline, one.component), bare=True)
        yield one.component, own.scaled(lora.strength)


def _load_original(pipeline: Any, lora: LoraWeights, part: str) -> str:
    """Load the file with stock code, at the LoRA's scale, and return the library that did."""
    path = Path(lora.where)
    network = getattr(pipeline, part)
    if lora.layout == PEFT:
        library = "peft"
        setattr(pipeline, part, _load_peft(network, path))
    else:
        library = "diffusers"
        _load_diffusers(pipeline, network, lora, path)
    loaded = adapted_layers(getattr(pipeline, part))
    if missing := lora.layers.keys() - loaded.keys():
        if lora.layout in (DIFFUSERS, PEFT, BARE) and lora.plain:
            return library  # check_loaded names what is missing
        raise NotStock(f"stock {library} ignores {len(missing)} layers, e.g. {min(missing)}")
    for layer in loaded.values():
        layer.scale_layer(lora.strength)
    return library


def _load_peft(network: nn.Module, path: Path) -> nn.Module:
    if path.stem != PEFT_FILE or not path.with_name(SETTINGS_FILE).is_file():
        raise NotStock(f"peft loads folders with {PEFT_FILE}.safetensors and {SETTINGS_FILE}")
    return PeftModel.from_pretrained(network, path.parent)


def _load_diffusers(pipeline: Any, network: Any, lora: LoraWeights, path: Path) -> None:
    if reason := _why_not_diffusers(pipeline, network, lora):
        raise NotStock(reason)
    # pass tensors, because diffusers would unpickle the file
    source = str(path) if path.suffix == ".safetensors" else read_tensors(path)[0]
    try:
        if lora.layout == BARE:
            network.load_lora_adapter(source, prefix=None)
            return
        _load_by_pipeline(pipeline, network, source)
    except _STOCK_ERRORS as error:
        if lora.plain:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise NotStock(f"stock diffusers does not load it ({reason})") from error


def _load_by_pipeline(pipeline: Any, network: Any, source: Any) -> None:
    """Load a LoRA with the loader of a pipeline class; UNets' and FLUX.1's take alphas apart."""
    unet, options = hasattr(network, "up_blocks"), {}
    if unet:
        options = {"unet_config": network.config}
    elif "return_alphas" in inspect.signature(pipeline.lora_state_dict).parameters:
        options = {"return_alphas": True}
    state, *alphas, metadata = pipeline.lora_state_dict(
        source, return_lora_metadata=True, **options
    )
    load = pipeline.load_lora_into_unet if unet else pipeline.load_lora_into_transformer
    load(state, *alphas, network, metadata=metadata)


def _why_not_diffusers(pipeline: Any, network: Any, lora: LoraWeights) -> str:
    """Return why diffusers is no reference for a file; empty if it is."""
    if lora.layout == BARE:
        return "" if hasattr(network, "load_lora_adapter") else "stock diffusers has no loader"
    if not hasattr(pipeline, "lora_state_dict"):
        return f"{type(pipeline).__name__} has no LoRA loader"
    name, unet = type(pipeline).__name__, hasattr(network, "up_blocks")
    converts = name.startswith(CONVERTS)
    by_layer = len(lora.stated_alphas) > 1 and not converts
    if lora.layout == KOHYA_STYLE and by_layer:
        return "stock diffusers applies one alpha to all layers, other programs one per layer"
    if lora.layout == KOHYA_STYLE and not (unet or converts):
        return f"{name} does not read kohya's names"
    if lora.layout == DIFFUSERS and lora.stated_alphas != {None}:
        if not name.startswith("FluxPipeline"):
            return "stock diffusers ignores .alpha in files with its own keys"
        if None in lora.stated_alphas:
            return "stock diffusers gives layers without .alpha that of other layers"
    if lora.layout == COMFY and not converts:
        return f"{name} does not read ComfyUI's names"
    if lora.layout in (COMFY, KOHYA_STYLE) and lora.biased and not name.startswith("Wan"):
        return f"{name} ignores the biases of this file"
    return ""
