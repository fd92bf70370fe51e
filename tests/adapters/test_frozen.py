"""A layer that carries a LoRA computes what peft's layer computes, and can be adapted further."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from refusals import refused
from torch import nn

from tdmvid.adapters.frozen import carry, merge_carried
from tdmvid.adapters.lora import adapters_off, attach
from tdmvid.adapters.weights import LoraLayer, LoraWeights, join, weights_of_config
from tdmvid.backbones.quantize import quantize
from tdmvid.config import LoraSettings

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 7, 6)),
    "a convolution of a line": (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    "a convolution with a stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "a convolution of single pixels": (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    "a convolution in time": (nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0)), (2, 4, 5, 3, 3)),
}


def peft_lora(network, **settings):
    """Return the network with a LoRA attached by peft, and the LoRA."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0"], lora_bias=True, **settings)
    adapted = copy.deepcopy(network)
    inject_adapter_in_model(config, adapted, "default")
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return adapted, weights_of_config(get_peft_model_state_dict(adapted), config)


@pytest.mark.parametrize("layer, shape", LAYERS.values(), ids=LAYERS)
def test_a_layer_with_a_lora_computes_what_peft_does_carried_merged_or_joined(layer, shape):
    torch.manual_seed(0)
    network, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(shape)
    peft, lora = peft_lora(network)
    carrying = copy.deepcopy(network)
    carry(carrying, [lora.scaled(0.5), lora.scaled(0.25), lora.scaled(0.25)])
    with torch.no_grad():
        torch.testing.assert_close(carrying(x), peft(x), atol=1e-5, rtol=1e-5)
        one = copy.deepcopy(network)
        carry(one, [join([lora.scaled(0.75), lora.scaled(0.25)])])
        torch.testing.assert_close(one(x), peft(x), atol=1e-5, rtol=1e-5)
        merge_carried(carrying)
        torch.testing.assert_close(carrying(x), peft(x), atol=1e-5, rtol=1e-5)
    assert type(carrying[0]) is type(layer)
    assert carrying.state_dict().keys() == network.state_dict().keys()


def test_an_adapter_on_top_is_switched_off_alone_and_trains_alone():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 6)
    _, lora = peft_lora(network)
    carry(network, [lora])
    teacher = network(x).detach()
    attach(network, LoraSettings(rank=1, alpha=1), ("0",), seed=0)
    with torch.no_grad():
        torch.testing.assert_close(network(x), teacher)  # it starts from the carried LoRA
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name
                nn.init.normal_(parameter)
        assert not torch.allclose(network(x), teacher)
        with adapters_off(network):
            torch.testing.assert_close(network(x), teacher)


def test_a_quantised_layer_keeps_its_lora_as_it_is():
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(64, 32)), torch.randn(3, 64)
    _, lora = peft_lora(network)
    carrying = copy.deepcopy(network)
    carry(carrying, [lora])
    for one in (network, carrying):
        quantize(one, [one], "int8")
        assert type(one[0].weight) is not nn.Parameter
    layer = lora.layers["0"]
    change = layer.scale * (x @ layer.a.T @ layer.b.T + layer.bias)
    torch.testing.assert_close(carrying(x), network(x) + change, atol=1e-4, rtol=1e-4)


def test_what_cannot_carry_a_lora_or_merge_it_is_refused():
    lora = LoraWeights({"0": LoraLayer(torch.ones(1, 4), torch.ones(3, 1))}, "style.safetensors")
    with refused("style.safetensors", "Embedding"):
        carry(nn.Sequential(nn.Embedding(3, 4)), [lora])
    plain = nn.Sequential(nn.Linear(4, 3, bias=False))
    layer = LoraLayer(torch.ones(1, 4), torch.ones(3, 1), bias=torch.ones(3))
    carry(plain, [LoraWeights({"0": layer})])
    with refused("model.adapters"):
        merge_carried(plain)
