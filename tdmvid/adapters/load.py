"""Load a LoRA into a stock pipeline, and check that the pipeline holds what the file states."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..backbones.lora_files import LoraFiles
from ..backbones.scheduler import load_scheduler
from ..backbones.text_lora import with_text_lora
from ..data.reading import reason
from .find import check_pair
from .layouts.names import DIFFUSERS, PEFT
from .lora import attach_weights
from .read import read_lora
from .settings import SETTINGS_FILE
from .teacher import digest_of
from .text import has_attention, text_encoders, text_parts, text_state
from .weights import LoraWeights, effect

SCALE_TOLERANCE = 0.02
"""Allowed relative change of a layer's effect beside the rounding of its factors to the base's
dtype. A wrong scale changes far more.
"""


def load_student(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Load a LoRA and the scheduler next to it into the stock pipeline.

    Args:
        pipeline: A stock pipeline, modified in place.
        folder: The student's folder.
        files: The family's LoRA files.

    Raises:
        ValueError: The folder has no LoRA, or one that cannot be loaded completely.
    """
    load_lora(pipeline, folder, files)
    pipeline.scheduler = load_scheduler(folder)


def load_lora(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Load a LoRA into the stock pipeline, with the pipeline's own loader where it can.

    Args:
        pipeline: A stock pipeline, modified in place.
        folder: A folder with a LoRA, or a LoRA file.
        files: The family's LoRA files.

    Raises:
        ValueError: The folder has no LoRA, or one that cannot be loaded completely.
    """
    of_pipeline = files.of_pipeline(pipeline)
    if len(of_pipeline) > 1:
        check_pair(Path(folder), of_pipeline)
    for one in of_pipeline:
        _load_one(pipeline, folder, one)


def _load_one(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Load the LoRA of one network of the stock pipeline."""
    network = getattr(pipeline, files.component)
    encodes = bool(text_encoders(files)) and getattr(pipeline, "text_encoder", None) is not None
    lora = read_lora(folder, files, network, text=encodes)
    if (
        lora.plain
        and _stock_text(lora)
        and lora.layout == _own_layout(files)
        and lora.where == str(Path(folder) / files.file)
    ):
        try:
            files.add(pipeline, folder)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{lora.where}: cannot be loaded into this {files.pipeline_class}"
                f" ({reason(error)}); use a LoRA of this model"
            ) from error
    else:
        attach_to_sample(network, lora)
        with_text_lora(pipeline, text_state([lora]))
    check_loaded(getattr(pipeline, files.component), lora)


def load_beside(
    pipeline: Any, folder: Path, adapters: Sequence[LoraWeights], files: LoraFiles
) -> None:
    """Load the user's LoRAs and a student's LoRA into the stock pipeline, with its own loader.

    Args:
        pipeline: A stock pipeline of the plain base, modified in place.
        folder: The student's folder.
        adapters: The user's LoRAs, each at its scale. A file in a layout that the loader does not
            support is converted.
        files: The family's LoRA files.

    Raises:
        ValueError: One of them is not loaded completely.
    """
    own = {one.component: one for one in files.of_pipeline(pipeline)}
    networks = networks_of(pipeline, files)
    loaded = [
        ("student", component, read_lora(folder, one, networks[component]))
        for component, one in own.items()
    ]
    scales = {f"adapter_{i}": lora.strength for i, lora in enumerate(adapters)}
    for name, lora in zip(scales, adapters, strict=True):
        with _in_stock_layout(lora, own[lora.component]) as file:
            own[lora.component].add(pipeline, file.parent, name, file=file.name)
        loaded.append((name, lora.component, lora))
    for one in own.values():
        one.add(pipeline, folder, "student")
    files.use(pipeline, scales | {"student": 1.0})
    for name, component, lora in loaded:
        check_loaded(getattr(pipeline, component), lora, adapter=name)


def networks_of(pipeline: Any, files: LoraFiles) -> dict[str, nn.Module]:
    """Return the networks of a stock pipeline that LoRAs adapt: one, or both experts.

    Args:
        pipeline: A stock pipeline.
        files: The family's LoRA files.

    Returns:
        The networks by component.
    """
    names = [one.component for one in files.of_pipeline(pipeline)]
    return {name: getattr(pipeline, name) for name in names}


def stock_file(lora: LoraWeights, files: LoraFiles) -> Path | None:
    """Return a LoRA's file if the family's own loader can load it unchanged.

    Args:
        lora: The LoRA, as it was read.
        files: The family's LoRA files.

    Returns:
        The file, or None if it needs conversion or is no longer what was read.
    """
    place = Path(lora.where)
    named = place.name == files.file or (files.any_name and place.suffix == ".safetensors")
    if not lora.plain or not _stock_text(lora) or lora.layout != _own_layout(files) or not named:
        return None
    if lora.layout == PEFT and not place.with_name(SETTINGS_FILE).is_file():
        return None
    same = place.is_file() and lora.digest in ("", digest_of(place))
    return place if same else None


def _stock_text(lora: LoraWeights) -> bool:
    """Return whether diffusers loads the text-encoder parts of a file."""
    return all(has_attention(layers) for layers in lora.text.values())


@contextmanager
def _in_stock_layout(lora: LoraWeights, files: LoraFiles) -> Iterator[Path]:
    """Yield a file with the LoRA in the layout of the family's own loader, at scale 1."""
    if file := stock_file(lora, files):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        own = lora.scaled(1 / lora.strength)
        state = {key: tensor.contiguous() for key, tensor in own.state().items()}
        files.save(Path(folder), state, own.config(), text_parts([own]))
        yield Path(folder) / files.file


def _own_layout(files: LoraFiles) -> str:
    return DIFFUSERS if files.prefix == files.part else PEFT


def attach_to_sample(network: nn.Module, lora: LoraWeights) -> None:
    """Attach a LoRA to the network of a stock pipeline, which is called without autocast.

    Args:
        network: Modified in place.
        lora: The LoRA, frozen afterwards.
    """
    attach_weights(network, lora).requires_grad_(False)
    for layer in adapted_layers(network).values():
        layer.cast_input_dtype_enabled = True  # the LoRA is float32, the base may not be


def check_loaded(network: nn.Module, lora: LoraWeights, *, adapter: str | None = None) -> None:
    """Check that a network's adapter equals a LoRA: the same layers, each at its scale.

    Args:
        network: The adapted network.
        lora: What was read from the file.
        adapter: Name of the adapter, if the network has several.

    Raises:
        ValueError: A layer is missing, added or different.
    """
    left = dict(lora.layers)
    for name, module in adapted_layers(network).items():
        if adapter and adapter not in module.lora_A:
            continue
        a, b, scale = _loaded(module, adapter)
        if a.is_meta or b.is_meta:
            raise ValueError(
                f"{lora.where}: {name} got no weights: the file lacks its factors, export it again"
            )
        found = effect(a, b, scale)
        layer = left.pop(name, None)
        if layer is None:
            wrong, expected = found.norm() > 0, found
        else:
            # rounded as the pipeline rounds: the factors of a short run cancel each other, which
            # makes more of the rounding
            rounded = layer.a.to(a.dtype), layer.b.to(b.dtype)
            expected = effect(*rounded, layer.scale).to(found.device)
            wrong = not (found - expected).norm() <= SCALE_TOLERANCE * expected.norm()
        if wrong:
            raise ValueError(
                f"{lora.where}: {name} was loaded wrongly (its effect has size"
                f" {found.norm():.3g} instead of {0 if layer is None else expected.norm():.3g})"
            )
    if left:
        raise ValueError(
            f"{lora.where}: {next(iter(left))} and {len(left) - 1} more of {len(lora.layers)}"
            " layers were not loaded"
        )


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers with an adapter, by their names in diffusers' network."""
    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def _loaded(layer: Any, adapter: str | None) -> tuple[Any, Any, float]:
    """Return both factors and the scale of an adapted layer."""
    [name] = [adapter] if adapter else layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
