"""What every family owes the method, checked against the stock pipeline of diffusers.

The families come from the registry and their tiny pipelines from tests/families: a new
backbone is tested by adding a builder there, and fails here without one.
"""

import json
from dataclasses import replace

import diffusers
import pytest
import torch
from families import BUILDERS
from refusals import refused
from scales import assert_close

from tdmvid.adapters.load import load_student
from tdmvid.adapters.lora import attach, shared_copy, start_from
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.discriminator import Discriminator, NetworkDiscriminator
from tdmvid.backbones.quantize import QuantizedLinear, held_bytes, planned_bytes, quantize
from tdmvid.backbones.registry import families, load_backbone
from tdmvid.config import LoraSettings, ModelConfig, load_config
from tdmvid.data.video import write_image, write_video
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import shifted, uniform
from tdmvid.diffusion.sampler import ddim
from tdmvid.parallel import launch
from tdmvid.plan.plan import make_plan
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train

PROMPTS = ["a red circle moves left", "a blue square"]
CASES = [
    (name, variant)
    for name in sorted(families())
    for variant in (BUILDERS[name].VARIANTS if name in BUILDERS else [None])
]
FIRST = dict(reversed(CASES))  # of most families one variant is in the quick suite
LARGE = ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline")
PARAMS = [
    pytest.param(
        case, marks=() if FIRST[case[0]] == case[1] and case[0] not in LARGE else pytest.mark.slow
    )
    for case in CASES
]
GRIDS = {"uniform": uniform, "shifted": lambda steps, process: shifted(steps, 2.0, process)}


class Case:
    """One tiny pipeline folder, and the two who read it: diffusers and our backbone."""

    def __init__(self, name, variant, folder):
        self.builder, self.folder, self.name = BUILDERS[name], folder, name
        self.size = self.builder.SIZE
        torch.manual_seed(0)
        self.built = self.builder.build(variant)
        self.built.save_pretrained(folder)

    def backbone(self, folder=None, **changes):
        return load_backbone(ModelConfig(path=str(folder or self.folder), **changes), self.size)

    def stock(self, folder=None):
        pipeline = getattr(diffusers, self.name).from_pretrained(folder or self.folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def another_base(self, folder):
        """The same architecture with other weights of the network."""
        pipeline = self.stock()
        network = getattr(pipeline, families()[self.name].spec.network_folder)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        pipeline.save_pretrained(folder)
        return folder

    def sample(self, pipeline, backbone, z, *, steps=4, cfg=1.0, output="latent"):
        """A stock call as a user makes it, from prompts, with the further arguments that a model
        card names.
        """
        call = eval(f"dict({backbone.stock.arguments_code()})")
        return pipeline(
            prompt=PROMPTS,
            latents=z,
            num_inference_steps=steps,
            guidance_scale=cfg,
            output_type=output,
            return_dict=False,
            **call,
        )[0]


@pytest.fixture(scope="module", params=PARAMS, ids=lambda case: "-".join(filter(None, case)))
def case(request, tmp_path_factory):
    name, variant = request.param
    if name not in BUILDERS:
        pytest.fail(
            f"{name} has no builder of a tiny pipeline in tests/families: add one, see its"
            " docstring"
        )
    return Case(name, variant, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def backbone(case):
    return case.backbone()


def noise(backbone, batch=2):
    return torch.randn(batch, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))


def test_a_prompt_is_called_cut_from_the_first_token_that_changes_nothing(backbone):
    def same(words):
        """Whether prompts of so many words that differ in the last one are one to the network."""
        first, second = (
            backbone.encode_prompts([" ".join(["a"] * (words - 1) + [last])])
            for last in ("red", "blue")
        )
        return all(torch.equal(first[name], second[name]) for name in first)

    prompts = [" ".join(["a"] * words) for words in range(1, 601)]
    cut = backbone.find_cut_prompts(prompts)
    assert cut.places == tuple(range(cut.places[0], 600))  # the longer ones and no other
    longest = cut.places[0]
    assert not same(longest) and same(longest + 1)
    note = cut.note(prompts)
    assert f"{600 - longest} of 600 prompts" in note and f"{cut.limit} tokens" in note
    assert f"first line {longest + 1}," in note and len(note) < 250


def test_prompts_are_encoded_as_by_the_pipeline(case, backbone):
    prompts = [*PROMPTS, "a " * 150]  # the last one is longer than any of these models reads
    expected, null = case.builder.encoded(case.stock(), prompts)
    for found, wanted in (
        (backbone.encode_prompts(prompts), expected),
        (backbone.encode_prompts([""] * 3), null),
    ):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert_close(found[name], tensor, 1e-5)
    assert (expected["prompt_embeds"][0] - expected["prompt_embeds"][1]).abs().max() > 1e-3


@pytest.mark.parametrize("spacing", GRIDS)
def test_x0_is_the_scheduler_s_original_sample_at_every_step(case, backbone, monkeypatch, spacing):
    grid, pipeline, seen = GRIDS[spacing](4, backbone.process), case.stock(), []
    pipeline.scheduler = backbone.student_scheduler(grid)
    step = type(pipeline.scheduler).step

    def spy(scheduler, out, timestep, x, **options):
        result = step(scheduler, out, timestep, x, **options)
        # A flow's scheduler does not name its clean prediction: x - sigma v.
        clean = result[1] if len(result) > 1 else x - scheduler.sigmas[len(seen)] * out
        seen.append((timestep, x, clean))
        return result

    monkeypatch.setattr(type(pipeline.scheduler), "step", spy)
    case.sample(pipeline, backbone, noise(backbone))
    cond = backbone.encode_prompts(PROMPTS)
    assert len(seen) == 4
    for (timestep, x, expected), time in zip(seen, grid.descending(), strict=True):
        t = torch.full((2,), time)
        assert_close(backbone.process.timestep(t)[0].float(), timestep.float().cpu(), 1e-6)
        with torch.no_grad():
            ours = backbone.predict_x0(backbone.network, x, t, cond)
        assert_close(ours, expected.float(), 1e-4)


@pytest.mark.parametrize("cfg", [1.0, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spacing", GRIDS)
def test_four_steps_give_the_stock_pipeline_s_latents(case, backbone, spacing, cfg):
    grid, pipeline, z = GRIDS[spacing](4, backbone.process), case.stock(), noise(backbone)
    pipeline.scheduler = backbone.student_scheduler(grid)
    denoiser = Guided(backbone.denoiser(backbone.network), backbone.encode_prompts([""]), cfg)
    cond = backbone.encode_prompts(PROMPTS)
    ours, theirs = ddim(denoiser, z, cond, grid), case.sample(pipeline, backbone, z, cfg=cfg)
    assert theirs.abs().mean() > 0.1 and (theirs[0] - theirs[1]).abs().mean() > 1e-3
    assert_close(ours, theirs, 1e-4)
    lean = backbone.stock.pipeline()
    lean.scheduler = backbone.student_scheduler(grid)
    from_embeddings = backbone.stock.latents(
        lean, z, cond, steps=4, cfg=cfg, null=backbone.encode_prompts([""])
    )
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


def test_the_network_sees_its_prompt_and_its_time(case, backbone):
    x, cond = noise(backbone), backbone.encode_prompts(PROMPTS)

    def out(cond, timestep):
        inputs = backbone.inputs(x, backbone.process.snap(torch.full((2,), 0.5)), cond)
        with torch.no_grad():
            return backbone.network(
                **inputs | {"timestep": torch.full_like(inputs["timestep"], timestep)},
                return_dict=False,
            )[0]

    first = out(cond, 499)
    assert (out(cond, 99) - first).abs().mean() > 1e-3
    assert (out(cond.rows(torch.tensor([1, 0])), 499) - first).abs().mean() > 1e-4


def test_a_gradient_reaches_the_latents_and_weights_stay_frozen(case, backbone):
    x = noise(backbone).requires_grad_()
    backbone.predict_x0(
        backbone.network,
        x,
        backbone.process.snap(torch.full((2,), 0.5)),
        backbone.encode_prompts(PROMPTS),
    ).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_bfloat16_weights_give_float32_predictions_near_the_exact_ones(case, backbone):
    half = case.backbone(dtype="bfloat16")
    x, cond, t = (
        noise(backbone),
        backbone.encode_prompts(PROMPTS),
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
    z, cond = noise(backbone), backbone.encode_prompts(PROMPTS)
    for name, tensor in variant.encode_prompts(PROMPTS).items():
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
    backbone.predict_x0(
        backbone.network, noise(backbone), torch.ones(2), backbone.encode_prompts(PROMPTS)
    )
    expected = backbone.spec.blocks(backbone.network)
    assert len(called) == len(set(called)) == len(expected) > 0 and set(called) == set(expected)


def test_what_is_decoded_is_what_was_encoded(case, backbone, monkeypatch):
    """Scales and shifts of `encode` undo those of `decode`, whatever the autoencoder makes of a
    video.
    """
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
        backbone, Discriminator(halved, taps, seed=0), backbone.encode_prompts([""])
    )
    x, tau, direction = (
        noise(backbone),
        torch.tensor([0.4, 0.7]),
        torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(9)),
    )
    four = Cond({}).with_step_count(4, 2, "cpu")
    with torch.no_grad():
        backbone.predict_x0(whole, x, tau, backbone.encode_prompts([""] * 2))
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


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_quantised_base_has_the_gradients_of_the_rounded_one_and_half_of_it_reads_as_well(
    case, kind, monkeypatch
):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install -e '.[quantize]'")
    backbone = case.backbone(dtype="bfloat16")
    network, blocks = backbone.network, backbone.spec.blocks(backbone.network)
    planned = planned_bytes(network, blocks, kind)
    quantize(network, blocks, kind)
    assert held_bytes(network) == planned
    halved = shared_copy(network)
    critic = NetworkDiscriminator(
        backbone,
        Discriminator(halved, backbone.discriminator_trunk(halved), seed=0),
        backbone.encode_prompts([""]),
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
        backbone.encode_prompts(PROMPTS),
    )

    def gradients():
        loss = backbone.predict_x0(network, x, t, cond).square().sum()
        return [
            *torch.autograd.grad(loss, [x, *trainable]),
            *torch.autograd.grad(critic(x, t, four).sum(), x),
        ]

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


@pytest.fixture(scope="module")
def run_json(case, tmp_path_factory):
    """The config file of a run of three steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    size = case.size
    (folder / "tiny.json").write_text(
        json.dumps(
            {
                "model": {"path": str(case.folder)},
                "video": {"frames": size.frames, "height": size.height, "width": size.width},
                "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
                "out": str(folder / "out"),
                "grid": {"kind": "shifted", "shift": 2.0},
                "objective": {"cfg": 2.0},
                "steps": 3,
                "batch": {"micro": 2},
                "lora": {"rank": 2, "alpha": 4},
                "student": {"lr": 1e-2},
                "fake": {"lr": 1e-2},
                "log": {
                    "checkpoint_every": 0,
                    "sample_every": 0,
                    "sample_prompts": PROMPTS,
                    "teacher_steps": 2,
                },
            }
        )
    )
    return folder / "tiny.json"


@pytest.fixture(scope="module")
def trained(run_json):
    """The folder of the finished run."""
    return train(load_config(run_json))


def user_s_pipeline(case, lora, base=None):
    """What the model card tells a user to do, up to the call itself; with another base if one is
    given.
    """
    code = (
        (lora / "README.md")
        .read_text()
        .split("```python\n")[1]
        .split("```")[0]
        .replace("path/to/this/folder", str(lora))
    )
    code = code.replace(str(case.folder), str(base or case.folder))
    scope = {}
    exec("\n".join(line for line in code.splitlines() if "pipe(" not in line), scope)
    scope["pipe"].set_progress_bar_config(disable=True)
    return scope["pipe"]


@pytest.mark.slow
def test_three_steps_of_tdm_give_a_lora_that_the_model_card_s_code_loads(case, backbone, trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(
        row["grad_norm/student"] > 0 and row["grad_norm/fake"] > 0 for row in rows
    )
    gallery = json.loads((trained / "gallery" / "gallery.json").read_text())
    pictures = [
        trained / "gallery" / name for column in gallery["columns"] for name in column["videos"]
    ]
    assert len(pictures) == 6 and {path.suffix for path in pictures} == {
        ".png" if case.size.frames == 1 else ".mp4"
    }
    assert all(path.stat().st_size > 100 for path in pictures)
    facts, z = json.loads((trained / "lora" / "export.json").read_text()), noise(backbone)
    assert facts["error"] <= facts["tolerance"] and 1e-5 <= facts["tolerance"] < 1e-4
    theirs = case.sample(user_s_pipeline(case, trained / "lora"), backbone, z)
    lean = backbone.stock.pipeline()
    lean.scheduler = backbone.student_scheduler(shifted(4, 2.0, backbone.process))
    plain = backbone.stock.latents(lean, z, backbone.encode_prompts(PROMPTS), steps=4)
    load_student(lean, trained / "lora", backbone.lora)
    ours = backbone.stock.latents(lean, z, backbone.encode_prompts(PROMPTS), steps=4)
    assert_close(ours, theirs, 1e-4)
    assert (theirs - plain).norm() > 1e-3 * plain.norm()  # the LoRA matters


@pytest.mark.slow
def test_a_set_of_step_counts_gives_a_checked_lora_for_each(run_json, tmp_path):
    train(load_config(run_json, ["steps=2", "objective.step_set=[2,4]", f"out={tmp_path}"]))
    facts = [
        json.loads((tmp_path / name / "export.json").read_text())
        for name in ("lora_2steps", "lora")
    ]
    assert [one["steps"] for one in facts] == [2, 4] and all(
        one["error"] <= one["tolerance"] for one in facts
    )


@pytest.mark.slow
def test_three_steps_with_an_adversarial_term_move_the_discriminator_s_heads_alone(
    case, run_json, tmp_path
):
    for number in range(3):
        clip = (
            torch.rand(3, case.size.frames, 40, 50, generator=torch.Generator().manual_seed(number))
            * 2
            - 1
        )
        if case.size.frames == 1:
            write_image(tmp_path / "real" / f"{number}.png", clip[:, 0])
        else:
            write_video(tmp_path / "real" / f"{number}.mp4", clip, fps=8)
    changes = [
        "objective.kind=gan",
        f"real.path={tmp_path / 'real'}",
        f"real.cache={tmp_path / 'latents'}",
        f"out={tmp_path / 'out'}",
        "discriminator.lr=0.001",
    ]
    trained = {}
    train(load_config(run_json, changes), at_end=lambda run: trained.update(vars(run)))
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 3 and all(
        row["grad_norm/discriminator"] > 0 and row["adversarial/student"] for row in rows
    )
    critic, other = trained["engines"]["discriminator"].module, case.backbone()
    fresh = Discriminator(other.network, other.discriminator_trunk(other.network), seed=2)
    kept, moved = (
        [torch.equal(a, b) for a, b in zip(part(critic), part(fresh), strict=True)]
        for part in (
            lambda made: made.network.parameters(),
            lambda made: (p for p in made.heads.parameters() if p.dim() == 2),
        )
    )
    assert all(kept) and not any(moved)


@pytest.mark.slow
def test_a_whole_network_is_trained_and_exported_as_a_folder_of_the_library(
    run_json, tmp_path, case, capsys
):
    train(load_config(run_json, ["training=full", "steps=1", "student.lr=1e-5", f"out={tmp_path}"]))
    assert "reloaded in a stock pipeline: relative difference" in capsys.readouterr().out
    saved = json.loads((tmp_path / "student" / "config.json").read_text())
    assert saved["_class_name"] == families()[case.name].spec.network_class.__name__


@pytest.mark.slow
def test_a_lora_goes_to_another_base_of_its_family(case, trained, tmp_path):
    torch.manual_seed(1)
    other = case.backbone(case.another_base(tmp_path))
    grid, z, cond = shifted(4, 2.0, other.process), noise(other), other.encode_prompts(PROMPTS)
    plain = ddim(other.denoiser(other.network), z, cond, grid)
    theirs = case.sample(user_s_pipeline(case, trained / "lora", base=tmp_path), other, z)
    settings, found = (
        LoraSettings(rank=2, alpha=3),
        read_lora(trained / "lora", other.lora, other.network),
    )
    student = attach(other.network, settings, other.lora_targets, seed=0)
    start_from(student, settings, found, where="the LoRA")
    ours = ddim(other.denoiser(student), z, cond, grid)
    assert (theirs - plain).norm() > 1e-3 * plain.norm()
    assert_close(ours, theirs, 1e-4)


@pytest.mark.slow
def test_a_plan_counts_the_parameters_and_the_work_of_a_real_call(case, run_json, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    from tdmvid.plan import cost as trace

    config = load_config(run_json, [f"out={tmp_path}"])
    made, run = make_plan(config), build_run(config, launch.start("none"))
    student = run.engines["student"]
    x, t = noise(run.backbone), torch.ones(2)
    with FlopCounterMode(display=False, custom_mapping=trace.ATTENTION_ON_A_CPU) as counter:
        run.roles.student(x, t, run.null.expand(2))
    assert made.calls.network.forward_flops == counter.get_total_flops() > 1e5
    assert made.weights.trainable == sum(p.numel() for p in student.trainable.values())
    assert (
        made.weights.base
        == sum(p.numel() for p in student.module.parameters()) - made.weights.trainable
    )
    assert 0 < made.calls.network.saved_checkpointed < made.calls.network.saved
