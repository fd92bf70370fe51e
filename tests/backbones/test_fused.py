"""Fused blocks compute what diffusers' blocks compute, with the same gradients."""

import copy

import pytest
import torch
from closeness import assert_near
from families import BUILDERS

from tdmvid.adapters.lora import attach
from tdmvid.backbones.discriminator import NetworkDiscriminator
from tdmvid.backbones.fused import rotate
from tdmvid.backbones.registry import find_family, load_backbone
from tdmvid.config import LoraSettings, ModelConfig
from tdmvid.roles.build import build_discriminator

CASES = [
    *(("CogVideoXPipeline", variant) for variant in ("sincos", "rotary", "temporal")),
    *(("WanPipeline", variant) for variant in ("cross_norm", "no_cross_norm")),
    *(("WanImageToVideoPipeline", variant) for variant in ("encoder", "first_frame")),
    ("HunyuanVideo15Pipeline", "base"),
]


@pytest.fixture
def backbone(request, tmp_path):
    name, variant = request.param
    torch.manual_seed(0)
    BUILDERS[name].build(variant).save_pretrained(tmp_path)
    return load_backbone(ModelConfig(path=str(tmp_path)), BUILDERS[name].SIZE)


def learn(backbone, network, dtype, batch):
    """Return the prediction and the adapter's gradients."""
    x = torch.randn(batch, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    images = torch.linspace(-1, 1, 2)[:batch, None, None, None] * backbone.blank_images(1).add(0.5)
    cond = backbone.encode_items(["a red circle", "a blue square moves"][:batch], images)
    inputs = {
        name: value.to(dtype) if "hidden_states" in name else value
        for name, value in backbone.inputs(
            x.to(dtype), torch.tensor([0.3, 0.8][:batch]), cond
        ).items()
    }
    out = network(**inputs, return_dict=False)[0].float()
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(out.square().mean(), trained, allow_unused=True)
    # the text stream of a last block has no effect on the output
    used = [gradient.flatten() for gradient in gradients if gradient is not None]
    assert len(used) > 0.8 * len(gradients)
    return out.detach(), torch.cat(used)


def adapted(backbone, dtype, *, fused):
    network = copy.deepcopy(backbone.network).to(dtype)
    if fused:
        backbone.fuse(network)
    attach(network, LoraSettings(2, 2), backbone.lora_targets, seed=0)
    for index, parameter in enumerate(p for p in network.parameters() if p.requires_grad):
        generator = torch.Generator().manual_seed(index)
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize("backbone", CASES, indirect=True, ids="-".join)
@pytest.mark.parametrize("batch", [1, 2])
def test_fused_blocks_are_the_library_s_to_rounding(backbone, batch):
    stock, fused = (adapted(backbone, torch.float32, fused=one) for one in (False, True))
    assert {n for n, _ in stock.named_parameters()} == {n for n, _ in fused.named_parameters()}
    exact = learn(backbone, stock, torch.float32, batch)
    for found, expected in zip(learn(backbone, fused, torch.float32, batch), exact):
        assert_near(found, expected, rel=2e-5)
    errors = [
        [
            ((found - expected).norm() / expected.norm()).item()
            for found, expected in zip(
                learn(
                    backbone, adapted(backbone, torch.bfloat16, fused=one), torch.bfloat16, batch
                ),
                exact,
            )
        ]
        for one in (False, True)
    ]
    for library, ours in zip(*errors):
        assert 0 < ours < 1.3 * library < 0.3


def test_a_rotation_turns_pairs_and_leaves_text_alone():
    angle = torch.rand(5, 4)
    cos, sin = (x.repeat_interleave(2, 1) for x in (angle.cos(), angle.sin()))
    x = torch.randn(2, 8, 3, 8, requires_grad=True)
    out = rotate(x, cos, sin, text=3)
    turned = torch.view_as_complex(x[:, 3:].unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(turned * torch.polar(torch.ones(()), angle)[:, None]).flatten(-2)
    expected = torch.cat([x[:, :3], turned], 1)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    (a,), (b,) = (torch.autograd.grad((y * weight).sum(), x) for y in (out, expected))
    torch.testing.assert_close(a, b)


def test_a_discriminator_reads_the_fused_blocks(tiny_run, tmp_path):
    (tmp_path / "clip.mp4").touch()
    config = tiny_run(tmp_path, "objective.kind=gan", f"real.path={tmp_path}")
    _, family = find_family(config.model)
    backbone = load_backbone(config.model, config.video)
    critic = build_discriminator(backbone.network, config, family)
    cond = backbone.encode_prompts([""])
    logits = NetworkDiscriminator(backbone, critic, cond)(
        torch.randn(1, *backbone.latent_shape()), torch.full((1,), 0.5), cond
    )
    assert logits.shape == (1,) and logits.isfinite().all()
