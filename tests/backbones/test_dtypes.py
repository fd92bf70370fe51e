"""Dtypes in which a network computes, also under a GPU's autocast rules."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tdmvid.adapters.lora import attach
from tdmvid.backbones.cogvideox_parallel import JointAttention
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig, OptimConfig
from tdmvid.parallel.engine import TorchEngine
from tdmvid.plan.gpu_dtypes import GpuAutocast


class AtAttention(TorchFunctionMode):
    """Records the dtypes of query, key and value of attention calls."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            given = [*args, *(kwargs.get(name) for name in ("query", "key", "value"))]
            self.seen |= {x.dtype for x in given[:6] if isinstance(x, torch.Tensor)}
        return func(*args, **kwargs)


def call(engine, backbone):
    """Return dtypes at attention and of the norms' outputs, under a GPU's autocast rules."""
    normed = set()
    for name, module in engine.module.named_modules():
        if "norm" in name.split(".")[-1]:
            module.register_forward_hook(
                lambda module, args, out: normed.update(x.dtype for x in _tensors(out))
            )
    cond = backbone.encode_prompts(["a red circle"])
    x = torch.randn(1, *backbone.latent_shape())
    with GpuAutocast(), AtAttention() as attention:
        backbone.denoiser(engine)(x, torch.full((1,), 0.5), cond)
    return attention.seen, normed


def _tensors(out):
    return out if isinstance(out, tuple) else (out,)


@pytest.mark.parametrize("whole", [False, True])
def test_query_and_key_have_the_dtype_of_the_value_behind_their_norms(tiny_cogvideox, whole):
    config = ModelConfig(path=str(tiny_cogvideox("rotary")), dtype="bfloat16")
    backbone = load_backbone(config, ClipSize(9, 32, 32))
    network = backbone.network
    if whole:  # all weights are trained in float32, and autocast casts them
        network = network.float().requires_grad_(True)
        network.set_attn_processor(JointAttention())
    else:
        attach(network, LoraSettings(2, 2), backbone.lora_targets, seed=0)
    engine = TorchEngine(network, OptimConfig(), total_steps=1, dtype=torch.bfloat16)
    attention, normed = call(engine, backbone)
    assert attention == {torch.bfloat16}
    assert torch.float32 in normed if whole else normed == {torch.bfloat16}
