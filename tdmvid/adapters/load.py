"""Give a stock pipeline a LoRA, and check that it holds what the file says."""

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
from .layouts.names import DIFFUSERS, PEFT
from .lora import attach_weights
from .read import read_lora
from .settings import SETTINGS_FILE
from .teacher import digest_of
from .weights import LoraWeights, effect

SCALE_TOLERANCE = 0.02
"""What a LoRA's rounding to the base's dtype may change; a wrong scale changes far more."""


def load_student(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Give the stock pipeline a LoRA and the scheduler beside it.

    Raises:
        ValueError: the folder has no LoRA, or one that cannot be loaded whole.
    """
    load_lora(pipeline, folder, files)
    pipeline.scheduler = load_scheduler(folder)


def load_lora(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Give the stock pipeline a LoRA, by its own loader if that knows the layout.

    Raises:
        ValueError: the folder has no LoRA, or one that cannot be loaded whole.
    """
    of_pipeline = files.of_pipeline(pipeline)
    if len(of_pipeline) > 1 and not Path(folder).is_dir():
        raise ValueError(f"{folder} is one file: give a folder with the LoRAs of both experts")
    for one in of_pipeline:
        _load_one(pipeline, folder, one)


def _load_one(pipeline: Any, folder: Path, files: LoraFiles) -> None:
    """Give one network of the stock pipeline its LoRA."""
    network = getattr(pipeline, files.component)
    lora = read_lora(folder, files, network)
    if (
        lora.plain
        and lora.layout == _own_layout(files)
        and lora.where == str(Path(folder) / files.file)
    ):
        try:
            files.add(pipeline, folder)
        except (RuntimeError, OSError, TypeError, ValueError) as error:
            raise ValueError(
                f"{lora.where}: no LoRA of this {files.pipeline_class}"
                f" ({str(error).splitlines()[0]})"
            ) from error
    else:
        attach_to_sample(network, lora)
    check_loaded(getattr(pipeline, files.component), lora)


def load_beside(
    pipeline: Any, folder: Path, adapters: Sequence[LoraWeights], files: LoraFiles
) -> None:
    """Give the stock pipeline the user's LoRAs and a student's beside them, by its own loader.

    Args:
        pipeline: of the plain base.
        folder: the student's.
        adapters: the user's, at their scales; a file that the loader does not know is converted.
        files: the family's.

    Raises:
        ValueError: one of them is not loaded whole.
    """
    loaded = {"student": read_lora(folder, files, getattr(pipeline, files.part))}
    scales = {f"adapter_{i}": lora.strength for i, lora in enumerate(adapters)}
    for name, lora in zip(scales, adapters, strict=True):
        with _in_stock_layout(lora, files) as place:
            files.add(pipeline, place, name)
        loaded[name] = lora
    files.add(pipeline, folder, "student")
    files.use(pipeline, scales | {"student": 1.0})
    for name, lora in loaded.items():
        check_loaded(getattr(pipeline, files.part), lora, adapter=name)


def stock_folder(lora: LoraWeights, files: LoraFiles) -> Path | None:
    """Return the folder of a LoRA's file if the family's own loader takes it as it is, else None.

    It is None, too, if the file is no longer what was read.
    """
    place = Path(lora.where)
    if not lora.plain or lora.layout != _own_layout(files) or place.name != files.file:
        return None
    if lora.layout == PEFT and not place.with_name(SETTINGS_FILE).is_file():
        return None
    same = place.is_file() and lora.digest in ("", digest_of(place))
    return place.parent if same else None


@contextmanager
def _in_stock_layout(lora: LoraWeights, files: LoraFiles) -> Iterator[Path]:
    """A folder that has a LoRA in the layout that the family's own loader knows, at scale 1."""
    if place := stock_folder(lora, files):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        own = lora.scaled(1 / lora.strength)
        state = {key: tensor.contiguous() for key, tensor in own.state().items()}
        files.save(Path(folder), state, own.config())
        yield Path(folder)


def _own_layout(files: LoraFiles) -> str:
    return DIFFUSERS if files.prefix == files.part else PEFT


def attach_to_sample(network: nn.Module, lora: LoraWeights) -> None:
    """Add a LoRA to the network of a stock pipeline, which is called without autocast."""
    attach_weights(network, lora).requires_grad_(False)
    for layer in adapted_layers(network).values():
        layer.cast_input_dtype_enabled = True  # the LoRA is float32, the base may be less


def check_loaded(network: nn.Module, lora: LoraWeights, *, adapter: str | None = None) -> None:
    """Check that a network's adapter is the LoRA: every layer of it, no other, at its scale.

    Args:
        adapter: its name, where the network has several.

    Raises:
        ValueError: it is not.
    """
    left = dict(lora.layers)
    for name, module in adapted_layers(network).items():
        if adapter and adapter not in module.lora_A:
            continue
        a, b, scale = _loaded(module, adapter)
        if a.is_meta or b.is_meta:
            raise ValueError(f"{lora.where}: {name} got no weights: the file lacks its factors")
        found = effect(a, b, scale)
        layer = left.pop(name, None)
        if layer is None:
            wrong, expected = found.norm() > 0, found
        else:
            expected = effect(layer.a, layer.b, layer.scale).to(found.device)
            wrong = not (found - expected).norm() <= SCALE_TOLERANCE * expected.norm()
        if wrong:
            raise ValueError(
                f"{lora.where}: {name} does not hold what the file has (an effect of size"
                f" {found.norm():.3g} instead of {0 if layer is None else expected.norm():.3g})"
            )
    if left:
        raise ValueError(
            f"{lora.where}: {next(iter(left))} and {len(left) - 1} more of {len(lora.layers)}"
            " layers were not loaded"
        )


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers with an adapter by their names in diffusers' network."""
    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in network.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def _loaded(layer: Any, adapter: str | None) -> tuple[Any, Any, float]:
    """Both factors and the scale of an adapted layer, of its only adapter if none is named."""
    [name] = [adapter] if adapter else layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
