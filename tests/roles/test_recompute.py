"""Checkpointing that keeps attention: equal gradients, and attention is not recomputed."""

import pytest
import torch
from families import BUILDERS
from refusals import refused
from torch.utils._python_dispatch import TorchDispatchMode

from tdmvid.adapters.lora import attach
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import LoraSettings, ModelConfig, ParallelConfig
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.roles.recompute import is_attention, keep_attention
from tdmvid.train.run import build_run

CHECKPOINTED, KEPT = "parallel.gradient_checkpointing=true", "parallel.keep_attention=true"


class Attentions(TorchDispatchMode):
    """Counts attention calls inside its context."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += is_attention(func)
        return func(*args, **(kwargs or {}))


def backward(config) -> tuple[list[torch.Tensor], int]:
    """Return the gradients of a student with a nonzero adapter, and its attention calls."""
    run = build_run(config, launch.start("none"))
    trainable = list(run.engines["student"].trainable.values())
    for index, parameter in enumerate(trainable):
        parameter.data = 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(index)
        )
    x = torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    loss = run.roles.student(x, torch.full((1,), 0.5), run.null).square().sum()
    with Attentions() as attentions:
        return torch.autograd.grad(loss, trainable), attentions.count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_attention_gives_the_same_gradients_and_is_not_computed_again(
    tiny_run, tmp_path, dtype
):
    changes = [], [CHECKPOINTED], [CHECKPOINTED, KEPT]
    (plain, none), (again, blocks), (kept, saved) = (
        backward(tiny_run(tmp_path, f"model.dtype={dtype}", *some)) for some in changes
    )
    assert (none, blocks, saved) == (0, 2, 0)
    for a, b, c in zip(plain, again, kept):
        assert torch.equal(a, b) and torch.equal(a, c) and a.abs().sum() > 0


@pytest.mark.parametrize(
    "pipeline, variant",
    [(name, variant) for name, builder in BUILDERS.items() for variant in builder.VARIANTS],
)
def test_every_family_has_the_gradients_of_a_network_that_keeps_all(tmp_path, pipeline, variant):
    """No family modifies the output of its attention in place."""
    torch.manual_seed(0)
    BUILDERS[pipeline].build(variant).save_pretrained(tmp_path)
    backbone = load_backbone(ModelConfig(path=str(tmp_path)), BUILDERS[pipeline].SIZE)
    network = attach(backbone.network, LoraSettings(2, 2), backbone.lora_targets, seed=0)
    trainable = [p for p in network.parameters() if p.requires_grad]
    for index, parameter in enumerate(trainable):
        parameter.data = 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(index)
        )
    x, cond = (
        torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)),
        backbone.encode_items(
            ["a red circle"], backbone.blank_images(1) if backbone.takes_images else None
        ),
    )

    def gradients() -> tuple[list[torch.Tensor], int]:
        loss = backbone.predict_x0(network, x, torch.full((1,), 0.5), cond).square().sum()
        with Attentions() as attentions:
            found = torch.autograd.grad(loss, trainable, allow_unused=True)
        return [each for each in found if each is not None], attentions.count  # one expert

    expected, _ = gradients()
    network.enable_gradient_checkpointing(keep_attention)
    found, again = gradients()
    assert (
        again == 0
        and all(torch.equal(a, b) for a, b in zip(found, expected))
        and any(b.any() for b in expected)
    )


def test_the_plan_counts_what_is_kept_and_what_is_not_computed_again(tiny_run, tmp_path):
    again, kept = (
        make_plan(tiny_run(tmp_path, *some)) for some in ([CHECKPOINTED], [CHECKPOINTED, KEPT])
    )
    call = kept.calls.network
    assert 0 < call.attention_flops < call.forward_flops
    assert again.flops() - kept.flops() == pytest.approx(2 * call.attention_flops)
    tokens, width, blocks = kept.tokens.count, kept.tokens.width, kept.tokens.blocks
    assert call.attention_bytes == pytest.approx(
        4 * tokens * width * blocks, rel=0.2
    )  # plus one value per head and token
    assert kept.memory()["activations"] - again.memory()["activations"] == 2 * call.attention_bytes


@pytest.mark.slow
def test_the_plan_counts_what_is_kept_of_a_discriminator(tiny_run, tmp_path):
    """One call of the discriminator beside two of the network.

    With several micro-batches, one graph of the network and the discriminator's exist at a time.
    """
    (tmp_path / "clip.mp4").touch()
    gan = ("objective.kind=gan", f"real.path={tmp_path}", "batch.accumulation=2")
    again, kept = (
        make_plan(tiny_run(tmp_path, *gan, *some))
        for some in ([CHECKPOINTED], [CHECKPOINTED, KEPT])
    )
    call, critic = kept.calls.network, kept.calls.discriminator
    assert (
        0 < critic.attention_flops < call.attention_flops
        and 0 < critic.attention_bytes < call.attention_bytes
    )
    assert again.flops() - kept.flops() == pytest.approx(
        2 * (2 * call.attention_flops + critic.attention_flops)
    )
    assert (
        kept.activations(True) - again.activations(True)
        == call.attention_bytes + critic.attention_bytes
    )


def test_keeping_attention_without_checkpointing_is_refused():
    for wrong in ({}, {"gradient_checkpointing": True, "compile": True}):
        with refused("keep_attention=true", "gradient_checkpointing"):
            ParallelConfig(keep_attention=True, **wrong)


def test_a_kernel_that_is_not_pytorch_s_cannot_be_kept(tiny_run, tmp_path):
    with refused("keep_attention=true"):
        tiny_run(tmp_path, CHECKPOINTED, KEPT, "model.attention=xformers")
