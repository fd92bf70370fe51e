"""Flow backbones beyond the contract: grids as schedulers, network times, and refusals."""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from families import BUILDERS, sd3, wan, wan_i2v
from refusals import refused
from scales import assert_close

from tdmvid.backbones.flow import flow_scheduler_for
from tdmvid.backbones.registry import load_backbone
from tdmvid.backbones.scheduler import TrajectoryScheduler, load_scheduler
from tdmvid.config import ClipSize, ModelConfig, RunConfig, from_dict
from tdmvid.config.rules import shown
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import TimeGrid, explicit, shifted, uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.check import TOLERANCE, usual_tolerance
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.train.run import build_run

FLOW = RectifiedFlow()
PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture(scope="module", params=["StableDiffusion3Pipeline", "WanPipeline"])
def family(request):
    return BUILDERS[request.param]


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return saved(family, tmp_path_factory.mktemp(family.PIPELINE))


@pytest.fixture(scope="module")
def backbone(family, folder):
    return load(family, folder)


def saved(family, folder, variant=None):
    torch.manual_seed(0)
    family.build(variant or family.VARIANTS[0]).save_pretrained(folder)
    return folder


def load(family, folder, size=None, **changes):
    return load_backbone(ModelConfig(path=str(folder), **changes), size or family.SIZE)


def test_as_shipped_the_stock_scheduler_wastes_the_last_of_four_steps():
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    stock.set_timesteps(4)
    assert stock.sigmas[3] < 0.01 and (stock.sigmas[3] - shifted(4, 3.0, FLOW).times[1]).abs() > 0.4


@pytest.mark.parametrize("shift", [0.2, 1.0, 2.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 50])
def test_any_shifted_grid_is_a_setting_of_the_stock_scheduler(steps, shift, tmp_path):
    grid = shifted(steps, shift, FLOW)
    flow_scheduler_for(grid, FLOW).save_pretrained(tmp_path)
    stock = load_scheduler(tmp_path)
    assert type(stock) is FlowMatchEulerDiscreteScheduler
    stock.set_timesteps(steps)
    assert_close(stock.sigmas, torch.tensor([*grid.descending(), 0.0]), 2e-6)
    assert_close(stock.timesteps, 1000 * torch.tensor(grid.descending()), 2e-6)


@pytest.mark.parametrize(
    "grid",
    [
        explicit([1000, 960, 889, 727], FLOW),
        explicit([1000, 400, 300, 10], FLOW),
        uniform(4, FLOW, start=0.9),
        TimeGrid((0.0, 0.5)),
    ],
    ids=str,
)
def test_any_other_grid_ships_its_times_and_gives_the_stock_pipeline_s_latents(
    backbone, folder, grid, tmp_path
):
    backbone.student_scheduler(grid).save_pretrained(tmp_path)
    lean = backbone.stock.pipeline()
    lean.scheduler = load_scheduler(tmp_path)
    assert isinstance(lean.scheduler, TrajectoryScheduler)
    z, cond = (
        torch.randn(2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)),
        backbone.encode_prompts(PROMPTS),
    )
    ours = ddim(backbone.denoiser(backbone.network), z, cond, grid)
    assert_close(backbone.stock.latents(lean, z, cond, steps=grid.steps), ours, 1e-4)
    with refused("num_inference_steps=5", str(grid.steps)):
        backbone.stock.latents(lean, z, cond, steps=5)
    with refused("timestep=-1"):
        lean.scheduler.step(z, -1, z)


@pytest.mark.parametrize(
    "timesteps, met", [([1000, 700, 200], True), ([1000, 700.5, 200], False)], ids=str
)
def test_an_export_may_differ_by_what_the_stock_scheduler_rounds_a_time_by(
    backbone, timesteps, met
):
    grid = explicit(timesteps, FLOW)
    stock = backbone.student_scheduler(grid)
    assert type(stock) is FlowMatchEulerDiscreteScheduler
    stock.set_timesteps(grid.steps)
    off = (stock.timesteps - torch.tensor(timesteps)).abs().max().item()
    assert (
        usual_tolerance(backbone, grid, torch.zeros(1), 0.0) == TOLERANCE["float32"] + off < 2e-4
        and (off == 0) == met
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_network_is_told_a_thousand_t_unrounded_and_its_velocity_is_noise_minus_data(
    family, folder, dtype
):
    backbone, told = load(family, folder, dtype=dtype), []
    x0, eps = torch.randn(
        2, 2, *backbone.latent_shape(), generator=torch.Generator().manual_seed(0)
    )

    def perfect(hidden_states, timestep, **_):
        told.append(timestep)
        return ((eps - x0),)

    t = torch.tensor([0.12345, 0.99961])
    found = backbone.predict_x0(
        perfect, FLOW.noise(x0, eps, t), t, backbone.encode_prompts(PROMPTS)
    )
    assert_close(found, x0, 1e-5)
    assert (
        told[0].dtype == torch.float32
        and (told[0] - torch.tensor([123.45, 999.61])).abs().max() < 1e-3
    )


@pytest.mark.parametrize("how", ["the index says so", "the folders are gone"])
def test_without_the_third_text_encoder_prompts_are_encoded_as_by_the_pipeline_without_it(
    tmp_path, how
):
    saved(sd3, tmp_path)
    whole = load(sd3, tmp_path)
    fingerprint = whole.text_fingerprint()
    expected, null = sd3.encoded(
        StableDiffusion3Pipeline.from_pretrained(tmp_path, text_encoder_3=None, tokenizer_3=None),
        PROMPTS,
    )
    assert not torch.equal(
        whole.encode_prompts(PROMPTS)["prompt_embeds"], expected["prompt_embeds"]
    )
    if how == "the index says so":
        index = json.loads((tmp_path / "model_index.json").read_text())
        (tmp_path / "model_index.json").write_text(
            json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]})
        )
    else:
        shutil.rmtree(tmp_path / "text_encoder_3")
        shutil.rmtree(tmp_path / "tokenizer_3")
    backbone = load(sd3, tmp_path)
    for prompts, wanted in ((PROMPTS, expected), ([""] * 2, null)):
        found = backbone.encode_prompts(prompts)
        for name, tensor in wanted.items():
            assert_close(found[name], tensor, 1e-5)
    assert backbone.text_fingerprint() != fingerprint


def test_a_variant_that_only_the_text_encoders_have_is_used_for_them_alone(tmp_path):
    saved(sd3, tmp_path)
    plain = load(sd3, tmp_path)
    for part in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        (tmp_path / part / "model.safetensors").rename(tmp_path / part / "model.fp16.safetensors")
    backbone = load(sd3, tmp_path, variant="fp16")
    torch.testing.assert_close(backbone.network.proj_out.weight, plain.network.proj_out.weight)
    assert backbone.encode_prompts(PROMPTS)["prompt_embeds"].abs().sum() > 0


@pytest.mark.parametrize(
    "setting, value, said",
    [
        ("transformer_2", ["diffusers", "WanTransformer3DModel"], "boundary_ratio=None"),
        ("boundary_ratio", 0.875, "boundary_ratio=0.875 and transformer"),
    ],
)
def test_experts_without_a_boundary_are_refused_and_the_reverse(tmp_path, setting, value, said):
    saved(wan, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {setting: value}))
    with refused(said):
        load(wan, tmp_path)


@pytest.mark.parametrize(
    "file, setting, value",
    [
        ("transformer/config.json", "pos_embed_seq_len", 514),
    ],
)
def test_other_wans_of_images_are_refused_by_a_load_and_a_plan(tmp_path, file, setting, value):
    saved(wan_i2v, tmp_path)
    written = json.loads((tmp_path / file).read_text()) | {setting: value}
    (tmp_path / file).write_text(json.dumps(written))
    size = {name: getattr(wan_i2v.SIZE, name) for name in ("frames", "height", "width")}
    config = from_dict(RunConfig, {"model": {"path": str(tmp_path)}, "video": size})
    for ask in (lambda: load(wan_i2v, tmp_path), lambda: make_plan(config)):
        with refused("model.path", f"{setting}={shown(value)}", "Wan 2.2 I2V-A14B"):
            ask()


def test_a_wan_that_reads_embeddings_without_an_image_encoder_is_refused(tmp_path):
    saved(wan_i2v, tmp_path)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_dim": 1280}))
    with refused("model.path", "image_dim=1280", "image_encoder"):
        load(wan_i2v, tmp_path)


def test_a_text_and_image_model_is_loaded_as_either_pipeline(tmp_path):
    """The hub's folder of TI2V-5B names the pipeline without an image."""
    saved(wan, tmp_path, "ti2v")
    text, image = load(wan, tmp_path), load(wan, tmp_path, pipeline="WanImageToVideoPipeline")
    assert not text.takes_images and image.takes_images
    for name, tensor in text.encode_prompts(PROMPTS).items():
        assert torch.equal(image.encode_prompts(PROMPTS)[name], tensor)
    cond = image.encode_items(PROMPTS, image.blank_images(2))
    z = torch.randn(2, *image.latent_shape())
    grid = shifted(2, 2.0, image.process)
    ours = ddim(image.denoiser(image.network), z, cond, grid)
    pipeline = image.stock.pipeline()
    pipeline.scheduler = image.student_scheduler(grid)
    assert_close(image.stock.latents(pipeline, z, cond, steps=2), ours, 1e-4)
    assert torch.equal(ours[:, :, 0], cond["image_latents"][:, :, 0])


@pytest.mark.parametrize(
    "family, pipeline, said",
    [
        (wan, "WanImageToVideoPipeline", "in_channels=4"),
        (sd3, "WanImageToVideoPipeline", "model.pipeline='WanImageToVideoPipeline'"),
        (wan, "WanVACEPipeline", "model.pipeline='WanVACEPipeline'"),
    ],
)
def test_a_pipeline_that_does_not_fit_the_model_is_refused(tmp_path, family, pipeline, said):
    saved(family, tmp_path)
    with refused("model.path", said):
        load(family, tmp_path, pipeline=pipeline)


def test_a_prompt_without_an_image_is_refused_before_the_teacher_is_loaded(tmp_path, monkeypatch):
    saved(wan_i2v, tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    size = {name: getattr(wan_i2v.SIZE, name) for name in ("frames", "height", "width")}
    settings = {
        "model": {"path": str(tmp_path / "base")},
        "video": size,
        "prompts": {"path": str(tmp_path / "prompts.txt")},
        "grid": {"kind": "shifted", "shift": 2.0},
        "out": str(tmp_path / "run"),
    }
    config = from_dict(RunConfig, settings)
    monkeypatch.setattr("tdmvid.train.run.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    for ask in (make_plan, lambda config: build_run(config, launch.start("none"))):
        with refused("prompts.path", "prompts.images"):
            ask(config)


def test_a_scheduler_of_another_process_is_refused(family, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDIMScheduler", "prediction_type": "epsilon"})
    )
    with refused("DDIMScheduler", "'epsilon'"):
        load(family, copy)


@pytest.mark.parametrize(
    "name, size, fact",
    [
        ("StableDiffusion3Pipeline", ClipSize(1, 36, 32), "video.height=36"),
        ("StableDiffusion3Pipeline", ClipSize(5, 32, 32), "video.frames=5"),
        ("StableDiffusion3Pipeline", ClipSize(1, 32, 104), "96"),
        ("WanPipeline", ClipSize(9, 40, 32), "video.height=40"),
        ("WanPipeline", ClipSize(9, 32, 24), "video.width=24"),
        ("WanPipeline", ClipSize(12, 32, 32), "video.frames=12"),
        ("WanPipeline", ClipSize(2, 32, 32), "video.frames=2"),
    ],
)
def test_an_impossible_size_is_refused_with_the_rule(tmp_path_factory, name, size, fact):
    family = BUILDERS[name]
    root = tmp_path_factory.mktemp(name)
    with refused(fact):
        load(family, saved(family, root), size)


def test_wan_s_text_is_zero_behind_its_prompt(tmp_path):
    cond = load(wan, saved(wan, tmp_path)).encode_prompts(["a red circle"])
    assert isinstance(cond, Cond) and cond["prompt_embeds"].shape[1] == 512
    assert (
        cond["prompt_embeds"][0, 3].abs().sum() > 0
        and cond["prompt_embeds"][0, 4:].abs().sum() == 0
    )  # three words and the end token
