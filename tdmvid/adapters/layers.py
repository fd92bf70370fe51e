"""Build the LoRA layer of a module from its tensors in a file.

Files may store the factors of 1 x 1 convolutions as matrices, and whole changes of a weight. A
layer has both factors in the shape of the module's weight [out, in, ...].
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn

from .parts import Parts
from .weights import LoraLayer, rank_and_scale


def build_layer(
    path: Path,
    name: str,
    found: Parts,
    module: nn.Module,
    config: LoraConfig | None,
    network: nn.Module,
) -> LoraLayer | None:
    """Build the LoRA layer of a module from its tensors in a file.

    Args:
        path: The file, for messages.
        name: Name of the module.
        found: Its tensors by kind, and their keys.
        module: The module.
        config: peft's settings of the file; None without.
        network: The network, for messages.

    Returns:
        The layer with factors A [r, in, ...] and B [out, r, ...]; None if no LoRA can hold the
        tensors.

    Raises:
        ValueError: The tensors are incomplete, contradict each other, or are of another model.
    """
    tensors, keys = found.tensors, found.keys
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    shape = () if weight is None else tuple(weight.shape)
    adaptable = len(shape) >= 2 and not isinstance(module, nn.Embedding)
    if not adaptable and not {"a", "b"} & tensors.keys():
        return None
    if "alpha" in tensors and not {"a", "b"} & tensors.keys():
        raise ValueError(
            f"{path}: {keys['alpha']} belongs to a layer without factors, so the file is damaged:"
            " download or export it again"
        )
    if "diff" in tensors:
        return _of_whole_change(path, found, shape)
    if {"a", "b"} & tensors.keys():
        a, b = _factors(path, name, found, shape, network)
        layer = LoraLayer(a, b, _scale(path, name, found, len(a), config))
    else:  # only the bias changes
        layer = LoraLayer(torch.zeros(1, *shape[1:]), torch.zeros(shape[0], 1, *_ones(shape)))
    return _with_bias(path, layer, found, shape)


def _factors(
    path: Path, name: str, found: Parts, shape: tuple[int, ...], network: nn.Module
) -> tuple[Tensor, Tensor]:
    """Return both factors in the layer's own shape.

    Files may store the factors of 1 x 1 convolutions as matrices.
    """
    for kind, other in (("a", "b"), ("b", "a")):
        if kind not in found.tensors:
            raise ValueError(
                f"{path}: {name} has {found.keys[other]} but not the other factor, so the file is"
                " damaged: download or export it again"
            )
    a, b = found.tensors["a"], found.tensors["b"]
    for kind, tensor, fits in (
        ("a", a, a.dim() > 1 and len(a) and a[0].numel() == torch.Size(shape[1:]).numel()),
        ("b", b, b.dim() > 1 and len(b) == shape[0] and b.numel() == len(b) * b.shape[1]),
    ):
        if not fits:
            raise ValueError(
                f"{path}: {found.keys[kind]} has shape {list(tensor.shape)}, but the layer's weight"
                f" in {type(network).__name__} is {list(shape)}: a LoRA for weights of shape"
                f" {[len(b), *a.shape[1:]]} is of another model, see its model card"
            )
    if b.shape[1] != len(a):
        raise ValueError(
            f"{path}: {name} has factors of rank {len(a)} and {b.shape[1]}, so the file is damaged:"
            " download or export it again"
        )
    return a.reshape(len(a), *shape[1:]), b.reshape(*b.shape[:2], *_ones(shape))


def _ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (len(shape) - 2)


def _scale(path: Path, name: str, found: Parts, rank: int, config: LoraConfig | None) -> float:
    if "alpha" in found.tensors:
        if found.tensors["alpha"].numel() != 1:
            raise ValueError(
                f"{path}: {found.keys['alpha']} has shape {list(found.tensors['alpha'].shape)}, but"
                " must be one number: export the file again"
            )
        return found.tensors["alpha"].item() / rank
    if config is None:
        return 1.0
    try:
        stated, scale = rank_and_scale(config, found.module, name)
    except re.error as error:
        raise ValueError(
            f"{path}: rank_pattern or alpha_pattern in its settings is not a valid regular"
            f" expression ({error}): correct it"
        ) from error
    if stated != (found.rank or rank):
        raise ValueError(
            f"{path}: {name} has rank {rank}, but its settings say {stated}: peft would not load"
            " it; correct the settings or export it again"
        )
    return scale


def _of_whole_change(path: Path, found: Parts, shape: tuple[int, ...]) -> LoraLayer:
    """Return a change of the whole weight [out, in, ...] as two factors; one is the identity."""
    if {"a", "b"} & found.tensors.keys():
        raise ValueError(
            f"{path}: {found.keys['diff']} and factors of the same layer cannot be combined: remove"
            " one"
        )
    diff = found.tensors["diff"].float()
    if tuple(diff.shape) != shape:
        raise ValueError(
            f"{path}: {found.keys['diff']} has shape {list(diff.shape)}, but the layer's weight is"
            f" {list(shape)}: use a LoRA of this model"
        )
    matrix = diff.flatten(1)
    if len(matrix) > matrix.shape[1] and len(shape) == 2:
        a, b = torch.eye(matrix.shape[1]), matrix
    else:
        a, b = matrix, torch.eye(len(matrix))
    layer = LoraLayer(a.reshape(len(a), *shape[1:]), b.reshape(*b.shape, *_ones(shape)))
    return _with_bias(path, layer, found, shape)


def _with_bias(path: Path, layer: LoraLayer, found: Parts, shape: tuple[int, ...]) -> LoraLayer:
    """Return the layer with its bias: peft scales it like the factors, `diff_b` is unscaled."""
    for kind in ("bias", "diff_b"):
        bias = found.tensors.get(kind)
        if bias is None:
            continue
        if tuple(bias.shape) != shape[:1]:
            raise ValueError(
                f"{path}: {found.keys[kind]} has shape {list(bias.shape)}, but the layer's weight"
                f" is {list(shape)}: use a LoRA of this model"
            )
        if kind == "diff_b" and layer.scale == 0:
            layer = replace(layer, b=torch.zeros_like(layer.b), scale=1.0)
        layer = replace(layer, bias=bias if kind == "bias" else bias.float() / layer.scale)
    return layer
