"""Contract of every family, checked against the stock diffusers pipeline.

The families come from the registry and their tiny pipelines from tests/families. To test a new
backbone, add a builder there; without one these tests fail.
"""

from dataclasses import replace

import pytest
import torch
from contract_cases import PROMPTS, noise
from refusals import refused
from scales import assert_close

from benchmarks.untrained import text_like
from tdmvid.adapters.lora import attach, shared_copy
from tdmvid.backbones.discriminator import Discriminator, NetworkDiscriminator
from tdmvid.backbones.experts import experts_of
from tdmvid.backbones.quantize import QuantizedLinear, held_bytes, planned_bytes, quantize
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import LoraSettings, ModelConfig, RunConfig, from_dict
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import resampled, shifted, uniform
from tdmvid.diffusion.sampler import ddim
from tdmvid.roles.guidance import guide
from tdmvid.roles.rounding import difference

GRIDS = {"uniform": uniform, "shifted": lambda steps, process: shifted(steps, 2.0, process)}


def test_a_prompt_is_called_cut_from_the_first_token_that_changes_nothing(case, backbone):
    count = getattr(case.builder, "TOO_MANY_WORDS", 600)

    def same(words):
        """Whether prompts of so many words that differ in the last one are one to the network."""
        first, second = (
            backbone.encode_prompts([" ".join(["a"] * (words - 1) + [last])])
            for last in ("red", "blue")
        )
        return all(torch.equal(first[name], second[name]) for name in first)

    prompts = [" ".join(["a"] * words) for words in range(1, count + 1)]
    cut = backbone.find_cut_prompts(prompts)
    assert cut.places == tuple(range(cut.places[0], count))  # only the longer ones
    longest = cut.places[0]
    assert not same(longest) and same(longest + 1)
    note = cut.note(prompts)
    assert f"{count - longest:,} of {count:,} prompts" in note and f"{cut.limit} tokens" in note
    assert f"first prompt {longest + 1}:" in note and len(note) < 250


def test_prompts_are_encoded_as_by_the_pipeline(case, backbone):
    prompts = [*PROMPTS, "a " * 150]  # the last one exceeds the limit of all these models
    expected, null = case.builder.encoded(case.stock(), prompts)
    for found, wanted in (
        (backbone.encode_prompts(prompts), expected),
        (backbone.encode_prompts([""] * 3), null),
    ):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert_close(found[name], tensor, 1e-5)
    assert (expected["prompt_embeds"][0] - expected["prompt_embeds"][1]).abs().max() > 1e-3


def test_the_random_conditioning_of_benchmarks_is_one_that_the_network_takes(case, backbone):
    cond, denoiser = text_like(backbone, 2, 0), backbone.denoiser(backbone.network)
    assert {*backbone.encode_prompts([""])} <= {*cond}
    z = noise(backbone)
    x0 = denoiser(z, torch.full((2,), 0.8), cond)
    assert x0.shape == z.shape and x0.isfinite().all()


@pytest.mark.parametrize("spacing", GRIDS)
def test_x0_is_the_scheduler_s_original_sample_at_every_step(case, backbone, monkeypatch, spacing):
    grid, pipeline, seen = GRIDS[spacing](4, backbone.process), case.stock(), []
    pipeline.scheduler = backbone.student_scheduler(grid)
    step = type(pipeline.scheduler).step

    def spy(scheduler, out, timestep, x, **options):
        result = step(scheduler, out, timestep, x, **options)
        # Flow schedulers do not return x0 = x - sigma v.
        clean = result[1] if len(result) > 1 else x - scheduler.sigmas[len(seen)] * out
        seen.append((timestep, x, clean))
        return result

    monkeypatch.setattr(type(pipeline.scheduler), "step", spy)
    case.sample(pipeline, backbone, noise(backbone))
    cond = case.cond(backbone)
    assert len(seen) == 4
    for (timestep, *stepped), time in zip(seen, grid.descending(), strict=True):
        x, expected = (case.unpacked(each) for each in stepped)
        t = torch.full((2,), time)
        assert_close(backbone.process.timestep(t)[0].float(), timestep.float().cpu(), 1e-6)
        with torch.no_grad():
            ours = backbone.predict_x0(backbone.network, x, t, cond)
        if getattr(backbone, "first_frame_is_given", False):
            # the stock pipeline steps it like the others, and replaces it at the end
            expected = torch.cat([cond["image_latents"], expected[:, :, 1:]], 2)
        assert_close(ours, expected.float(), 1e-4)


@pytest.mark.parametrize("cfg", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spacing", GRIDS)
def test_four_steps_give_the_stock_pipeline_s_latents(case, backbone, spacing, cfg):
    grid, pipeline, z = GRIDS[spacing](4, backbone.process), case.stock(), noise(backbone)
    pipeline.scheduler = backbone.student_scheduler(grid)
    network, null = backbone.denoiser(backbone.network), backbone.encode_prompts([""])
    denoiser = guide(from_dict(RunConfig, {"objective": {"cfg": cfg}}), network, null)
    cond = case.cond(backbone)
    ours, theirs = ddim(denoiser, z, cond, grid), case.sample(pipeline, backbone, z, cfg=cfg)
    assert theirs.abs().mean() > 0.1 and (theirs[0] - theirs[1]).abs().mean() > 1e-3
    assert_close(ours, theirs, 1e-4)
    lean = backbone.stock.pipeline()
    lean.scheduler = backbone.student_scheduler(grid)
    from_embeddings = backbone.stock.latents(lean, z, cond, steps=4, cfg=cfg, null=null)
    assert_close(from_embeddings, theirs, 1e-4)


def test_latents_have_the_pipeline_s_shape_and_are_decoded_as_by_it(case, backbone):
    pipeline, grid = case.stock(), uniform(4, backbone.process)
    pipeline.scheduler = backbone.student_scheduler(grid)
    assert case.sample(pipeline, backbone, None).shape[1:] == backbone.latent_shape()
    z = noise(backbone)
    theirs = case.sample(pipeline, backbone, z, output="pt")
    latents = case.sample(pipeline, backbone, z)
    ours = (backbone.decode(latents) + 1) / 2
    thrice = (backbone.decode(torch.cat([latents] * 3)) + 1) / 2
    assert_close(thrice, torch.cat([ours] * 3), 1e-5)
    assert ours.shape == (2, 3, case.size.frames, case.size.height, case.size.width)
    ours = ours.transpose(1, 2) if theirs.dim() == 5 else ours[:, :, 0]
    assert theirs.std() > 1e-2
    assert_close(ours, theirs, 1e-4)


def test_the_first_frame_is_decoded_from_the_leading_latents(case, backbone):
    """CogVideoX's autoencoder normalises over three latent frames at once, so it differs a bit."""
    z = noise(backbone)
    whole, found = backbone.decode(z), backbone.decode(backbone.leading(z, 1))
    assert torch.equal(backbone.leading(z, case.size.frames), z)
    first = whole[:, :, :1]
    assert found.shape == first.shape
    if case.name.startswith("CogVideoX"):
        assert (found - first).abs().mean() < 0.2 * whole.std()
    else:
        assert_close(found, first, 1e-5)


def test_the_network_sees_its_condition_and_its_time(case, backbone):
    x, cond = noise(backbone), case.cond(backbone)

    def out(cond, time):
        t = backbone.process.snap(torch.full((2,), time))
        with torch.no_grad():
            return backbone.call(backbone.network, x, t, cond)

    first = out(cond, 0.5)
    assert (out(cond, 0.1) - first).abs().mean() > 1e-3
    assert (out(cond.rows(torch.tensor([1, 0])), 0.5) - first).abs().mean() > 1e-4
    if backbone.takes_images:
        other = backbone.encode_images(case.images().flip(0))
        assert (out(cond.replaced_by(other), 0.5) - first).abs().mean() > 1e-4


def test_a_gradient_reaches_the_latents_and_weights_stay_frozen(case, backbone):
    x = noise(backbone).requires_grad_()
    backbone.predict_x0(
        backbone.network,
        x,
        backbone.process.snap(torch.full((2,), 0.5)),
        case.cond(backbone),
    ).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_bfloat16_weights_give_float32_predictions_near_the_exact_ones(case, backbone):
    half = case.backbone(dtype="bfloat16")
    x, cond, t = (
        noise(backbone),
        case.cond(backbone),
        backbone.process.snap(torch.full((2,), 0.5)),
    )
    with torch.no_grad():
        a, b = (one.predict_x0(one.network, x, t, cond) for one in (backbone, half))
    assert b.dtype == torch.float32 and torch.bfloat16 in {
        p.dtype for p in half.network.parameters()
    }
    assert 0 < (a - b).abs().mean() < 0.05 * a.abs().mean()


def test_a_variant_of_the_weights_is_loaded_in_every_part(case, backbone, tmp_path):
    case.built.save_pretrained(tmp_path, variant="fp16")
    variant = case.backbone(tmp_path, variant="fp16")
    assert not list(tmp_path.rglob("*model.safetensors"))
    z, cond = noise(backbone), case.cond(backbone)
    for name, tensor in case.cond(variant).items():
        assert_close(tensor, cond[name], 1e-5)
    assert_close(variant.decode(z), backbone.decode(z), 1e-5)
    grid = uniform(1, backbone.process)
    ours, theirs = (ddim(one.denoiser(one.network), z, cond, grid) for one in (variant, backbone))
    assert_close(ours, theirs, 1e-4)


def test_the_blocks_are_what_gradient_checkpointing_recomputes(case):
    backbone, called = case.backbone(), []

    def checkpoint(block, *args, **kwargs):
        called.append(block)
        return block(*args, **kwargs)

    backbone.network.enable_gradient_checkpointing(checkpoint)
    backbone.network.train()
    backbone.predict_x0(backbone.network, noise(backbone), torch.ones(2), case.cond(backbone))
    expected = backbone.spec.blocks(experts_of(backbone.network)[0])
    assert len(called) == len(set(called)) == len(expected) > 0 and set(called) == set(expected)


def test_what_is_decoded_is_what_was_encoded(case, backbone, monkeypatch):
    """The scales and shifts of `encode` and `decode` cancel, for any autoencoder."""
    size, taken, given = case.size, [], []
    encode, decode = backbone.vae.encode, backbone.vae.decode

    def spy(x):
        found = encode(x)
        taken.append(found.latent_dist.mode())
        return found

    monkeypatch.setattr(backbone.vae, "encode", spy)
    monkeypatch.setattr(
        backbone.vae, "decode", lambda latents: given.append(latents) or decode(latents)
    )
    videos = (
        torch.rand(
            2, 3, size.frames, size.height, size.width, generator=torch.Generator().manual_seed(5)
        )
        * 2
        - 1
    )
    latents = backbone.encode(videos)
    assert (
        latents.shape[1:] == backbone.latent_shape()
        and backbone.decode(latents).shape == videos.shape
    )
    assert_close(torch.cat(given), torch.cat(taken), 1e-5)
    assert (torch.cat(taken)[0] - torch.cat(taken)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_discriminator_reads_the_network_s_own_blocks_and_has_a_gradient_in_its_input(
    case, checkpointing
):
    case.need_one_network()
    backbone = case.backbone()
    halved = shared_copy(backbone.network)
    taps = backbone.discriminator_trunk(halved)
    if checkpointing:
        halved.enable_gradient_checkpointing()
    whole, names = backbone.network, {id(module): name for name, module in halved.named_modules()}
    places, features, halves = [names[id(tap.block)] for tap in taps], {}, {}
    for place in places:
        for network, into in ((whole, features), (halved, halves)):
            network.get_submodule(place).register_forward_hook(
                lambda _, __, out, place=place, into=into: into.update({place: out})
            )
    critic = NetworkDiscriminator(
        backbone, Discriminator(halved, taps, seed=0), case.no_cond(backbone)
    )
    x, tau, direction = (
        noise(backbone),
        torch.tensor([0.4, 0.7]),
        torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(9)),
    )
    four = Cond({}).with_step_count(4, 2, "cpu")
    with torch.no_grad():
        backbone.predict_x0(whole, x, tau, case.no_cond(backbone, 2))
        at = critic(x, tau, four)
        assert (critic(x, tau, Cond({}).with_step_count(1, 2, "cpu")) - at).abs().min() > 1e-5 and (
            critic(x, 1 - tau, four) - at
        ).abs().min() > 1e-5
        critic(x, tau, four)
        for place, tap in zip(places, taps, strict=True):
            ours, theirs = (
                (out[tap.index] if isinstance(out, tuple) else out)
                for out in (halves[place], features[place])
            )
            torch.testing.assert_close(ours, theirs)
            assert tap.width == ours.shape[1 if ours.dim() == 4 else 2]
        h = 1e-2
        slope = (critic(x + h * direction, tau, four) - critic(x - h * direction, tau, four)) / (
            2 * h
        )
    x.requires_grad_()
    along = torch.autograd.grad(critic(x, tau, four).sum(), x)[0]
    torch.testing.assert_close(
        (along * direction).flatten(1).sum(1),
        slope,
        rtol=0.02,
        atol=0.02 * slope.abs().max().item(),
    )
    assert {
        name.split(".")[0] for name, p in critic.network.named_parameters() if p.requires_grad
    } == {"heads"}


def test_a_student_in_half_precision_samples_along_its_trajectory_in_more_steps(case):
    backbone = case.backbone(dtype="bfloat16")
    grid = resampled(uniform(2, backbone.process), 3, backbone.process)
    pipeline, cond, z = backbone.stock.pipeline(), case.cond(backbone), noise(backbone)
    pipeline.scheduler = backbone.student_scheduler(grid)
    found = backbone.stock.latents(pipeline, z, cond, steps=3)
    expected = ddim(backbone.denoiser(backbone.network), z, cond, grid)
    assert difference(found, expected) < 5e-2


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_quantised_base_has_the_gradients_of_the_rounded_one_and_half_of_it_reads_as_well(
    case, kind, monkeypatch
):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[quantize]'")
    case.need_one_network()
    backbone = case.backbone(dtype="bfloat16")
    network, blocks = backbone.network, backbone.spec.blocks(backbone.network)
    planned = planned_bytes(network, blocks, kind)
    quantize(network, blocks, kind)
    assert held_bytes(network) == planned
    halved = shared_copy(network)
    critic = NetworkDiscriminator(
        backbone,
        Discriminator(halved, backbone.discriminator_trunk(halved), seed=0),
        case.no_cond(backbone),
    )
    trainable = [
        p
        for p in attach(
            network, LoraSettings(rank=2, alpha=2), backbone.lora_targets, seed=0
        ).parameters()
        if p.requires_grad
    ]
    for index, parameter in enumerate(trainable):
        parameter.data = 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(index)
        )
    x, t, four, cond = (
        noise(backbone).requires_grad_(),
        torch.tensor([0.4, 0.7]),
        Cond({}).with_step_count(4, 2, "cpu"),
        case.cond(backbone),
    )

    def gradients():
        loss = backbone.predict_x0(network, x, t, cond).square().sum()
        found = torch.autograd.grad(loss, [x, *trainable], allow_unused=True)
        # the text stream of a last block has no effect on the output
        used = [gradient for gradient in found if gradient is not None]
        assert len(used) > 0.8 * len(found)
        return [*used, *torch.autograd.grad(critic(x, t, four).sum(), x)]

    found = gradients()
    monkeypatch.setattr(
        QuantizedLinear,
        "forward",
        lambda layer, y: torch.nn.functional.linear(y, layer.weight.dequantize(), layer.bias),
    )
    assert (
        all(
            torch.equal(a, b) and b.isfinite().all()
            for a, b in zip(found, gradients(), strict=True)
        )
        and found[0].any()
        and found[-1].any()
    )


@pytest.mark.parametrize("setting, value", [("height", 33), ("width", 33), ("frames", 6)])
def test_an_impossible_size_is_refused_with_its_value(case, setting, value):
    with refused(f"video.{setting}={value}"):
        load_backbone(ModelConfig(path=str(case.folder)), replace(case.size, **{setting: value}))
