"""A base in eight bits per weight: half the bytes, else a plain network with rounded weights."""

import importlib.util

import pytest
import torch
from refusals import refused
from torch import nn

from tdmvid.adapters.lora import attach, shared_copy
from tdmvid.backbones.quantize import (
    QuantizedLinear,
    check_torchao,
    held_bytes,
    linear_layers,
    parts,
    planned_bytes,
    quantize,
)
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("torchao"),
    reason="torchao is not installed: pip install -e '.[quantize]'",
)
KINDS = ("int8", "float8")
LEVEL = {"int8": 0.5 / 127, "float8": 2**-4}
"""Largest change of a weight: relative to its row's maximum (int8), or to itself (float8).

For float8 this holds for weights at least as large as its normal numbers.
"""


def layer(kind, dtype=torch.float32, bias=True):
    """A quantised layer whose first row of weights is zero, and its weight before."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(48, 32, bias).to(dtype)).requires_grad_(False)
    network[0].weight[0] = 0
    before = network[0].weight.clone()
    quantize(network, [network], kind)
    return network[0], before


def plain(network):
    """Return the same network with unquantized weights that have the rounded values, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLinear):
                whole = nn.Linear(
                    child.in_features, child.out_features, child.bias is not None, device="meta"
                )
                whole.weight, whole.bias = (
                    nn.Parameter(child.weight.dequantize(), requires_grad=False),
                    child.bias,
                )
                setattr(parent, name, whole)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_moves_by_half_a_level_at_most_and_a_row_of_zeros_not_at_all(kind, dtype):
    quantized, before = layer(kind, dtype)
    after, before = quantized.weight.dequantize().float(), before.float()
    largest = before.abs().amax(1, keepdim=True)
    bound = LEVEL[kind] * (
        largest if kind == "int8" else torch.maximum(before.abs(), largest / 448 * 2**-6)
    )
    assert (
        (after - before).abs() <= bound * 1.001 + 2**-8 * before.abs() * (dtype != torch.float32)
    ).all()
    assert not after[0].any() and (after[1:] != before[1:]).any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_gradients_of_a_layer_are_those_of_the_rounded_weights(kind, bias):
    quantized, _ = layer(kind, bias=bias)
    values = torch.randn(2, 5, 48)
    for context in (torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)):
        # Use two leaves: PyTorch 2.10's autocast caches the cast of a leaf, even without gradient.
        x, y = values.clone().requires_grad_(), values.clone().requires_grad_()
        with context:
            found = quantized(x)
            expected = nn.functional.linear(y, quantized.weight.dequantize(), quantized.bias)
        ones = torch.randn_like(found)
        assert found.dtype == expected.dtype and torch.equal(found, expected)
        (a,), (b,) = torch.autograd.grad(found, x, ones), torch.autograd.grad(expected, y, ones)
        assert torch.equal(a, b) and a.isfinite().all() and a.any()


@pytest.mark.parametrize("kind", KINDS)
def test_no_whole_weight_waits_for_the_backward_pass(kind):
    """With torchao's own operations it would."""
    quantized, _ = layer(kind)
    kept = {}
    for name, call in {
        "torchao's": lambda x: nn.functional.linear(x, quantized.weight),
        "ours": quantized,
    }.items():
        kept[name] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, name=name: kept[name].append(saved.numel()) or saved, lambda saved: saved
        ):
            assert call(torch.randn(3, 48, requires_grad=True)).requires_grad
    assert quantized.weight.numel() in kept["torchao's"] and not kept["ours"]


@pytest.fixture(params=KINDS)
def tiny(request, tiny_cogvideox):
    backbone = load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))
    return backbone, request.param


def test_all_linear_layers_of_the_blocks_and_nothing_else_are_rounded_to_the_planned_bytes(tiny):
    backbone, kind = tiny
    blocks, before = (
        backbone.spec.blocks(backbone.network),
        {name: p.clone() for name, p in backbone.network.named_parameters()},
    )
    planned, expected = planned_bytes(backbone.network, blocks, kind), linear_layers(blocks)
    weights = {id(one.weight) for one in expected}
    names = {name for name, p in backbone.network.named_parameters() if id(p) in weights}
    quantize(backbone.network, blocks, kind)
    found = {name for name, p in backbone.network.named_parameters() if len(parts(p)) > 1}
    assert (
        found == names
        and any("norm1.linear" in name for name in found)
        and not any("proj_out" in name or "embed" in name for name in found)
    )
    assert (
        held_bytes(backbone.network) == planned < 0.6 * sum(p.numel() * 4 for p in before.values())
    )
    assert all(
        torch.equal(p, before[name])
        for name, p in backbone.network.named_parameters()
        if name not in found
    )


def test_two_adapters_on_one_quantised_base_have_the_gradients_of_two_on_the_rounded_one(tiny):
    backbone, kind = tiny
    quantize(backbone.network, backbone.spec.blocks(backbone.network), kind)
    networks = [
        attach(net, LoraSettings(2, 4), backbone.lora_targets, seed=i)
        for i, net in enumerate((shared_copy(backbone.network), backbone.network))
    ]
    own, other = (dict(network.named_parameters()) for network in networks)
    assert all((own[name] is other[name]) == ("lora_" not in name) for name in own)
    x, t = (
        torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)),
        torch.full((1,), 0.5),
    )
    cond = backbone.encode_prompts(["a red circle"])

    def gradients(network, trainable):
        loss = backbone.denoiser(network)(x, t, cond).square().sum()
        return torch.autograd.grad(loss, trainable)

    for network in networks:
        trainable = [p for p in network.parameters() if p.requires_grad]
        for index, parameter in enumerate(trainable):
            parameter.data = 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(index)
            )
        found = gradients(network, trainable)
        plain(network)
        expected = gradients(network, trainable)
        assert all(torch.equal(a, b) and b.any() for a, b in zip(found, expected, strict=True))


def test_without_torchao_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("model.quantize", "pip install -e '.[quantize]'"):
        check_torchao()
