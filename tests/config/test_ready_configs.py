"""The built-in configs match their notes, and their values suit each model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tdmvid.backbones.dtype import torch_dtype
from tdmvid.backbones.registry import ARCHITECTURES, find_family, packaged_configs
from tdmvid.config import ModelConfig, load_config, share_batch
from tdmvid.data.prompts import read_training_prompts
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.grids import build_grid
from tdmvid.guard.limits import Prompts, check_settings

ROOT = Path(__file__).resolve().parents[2]
DEMOS = ("shapes_4nfe",)
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.json") if path.stem not in DEMOS)
EXPERTS = {"wan2.2_a14b_4nfe": 12.0, "wan2.2_i2v_a14b_4nfe": 5.0}
"""Official flow shifts of teachers with two experts, where the student uses another shift."""
WANS = ("wan1.3b_4nfe", "wan14b_4nfe", "wan2.1_i2v_14b_4nfe", "wan2.1_i2v_14b_720p_4nfe")
TO_ZERO_SNR = ("cogvideox", "wan", "sd3", "z_image", "flux", "qwen_image", "hunyuan")
ZERO_SNR = [name for name in CONFIGS if name.startswith(TO_ZERO_SNR)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)


def grid_of(config):
    """Return the grid of a config and the process of its teacher."""
    folder, family = find_family(config.model, weights=False)
    process, split = family.spec.read_process(folder), family.spec.read_split(folder)
    return build_grid(config.grid, process, split.time if split else 0.0), process


@pytest.mark.parametrize("name", CONFIGS)
def test_a_ready_config_says_where_its_values_come_from(name):
    notes = load_config(name).notes
    assert notes and all(note.endswith(".") for note in notes)


@pytest.mark.parametrize("name", [*CONFIGS, *DEMOS])
def test_a_ready_config_states_the_guidance_that_its_guard_compares_with(name):
    """With a fixed guard.cfg, the guard notices a run with another objective.cfg."""
    config = load_config(name)
    assert config.guard.cfg == config.objective.cfg
    assert (config.objective.cfg > 1) != (config.model.guidance is not None)


@pytest.mark.parametrize("name", [*CONFIGS, *DEMOS])
def test_the_guard_finds_nothing_in_the_settings_of_a_ready_config(name):
    config = share_batch(load_config(name), 1)
    prompts = len(read_training_prompts(config.prompts))
    assert not check_settings(config, Prompts(prompts, ranks=1))


@pytest.mark.parametrize("name", CONFIGS)
def test_rounding_does_not_drown_the_first_clean_prediction(name):
    """An eps-network's x0 contains its output times sigma / alpha, which amplifies rounding."""
    config = load_config(name)
    grid, process = grid_of(config)
    alpha, sigma = process.alpha_sigma(torch.tensor([grid.times[-1]]))
    if name not in ZERO_SNR:
        assert sigma / alpha * torch.finfo(torch_dtype(config.model)).eps < 0.12


@pytest.mark.parametrize("name", ZERO_SNR)
def test_a_trajectory_from_zero_snr_trains_its_fake_in_units_of_the_velocity(name):
    assert load_config(name).objective.fake_weight == "velocity"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_fake_learns_at_least_five_times_as_fast_as_the_student(name):
    config = load_config(name)
    assert config.fake.lr >= 5 * config.student.lr * (1 - 1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_teacher_s_reference_samples_have_the_shift_of_the_student_s_grid(name):
    config = load_config(name)
    if isinstance(grid_of(config)[1], RectifiedFlow):
        official = {"wan2.2_a14b_4nfe": 12.0, "wan2.2_i2v_a14b_4nfe": 5.0}.get(
            name, config.grid.shift
        )
        assert config.grid.kind == "shifted" and config.log.teacher_shift == official


def test_the_wan_models_have_the_guidance_and_shift_that_their_authors_recommend():
    values = {name: load_config(name) for name in WANS}
    assert {n: (c.objective.cfg, c.grid.shift) for n, c in values.items()} == {
        "wan1.3b_4nfe": (6.0, 8.0),
        "wan14b_4nfe": (5.0, 5.0),
        "wan2.1_i2v_14b_4nfe": (5.0, 3.0),
        "wan2.1_i2v_14b_720p_4nfe": (5.0, 5.0),
    }


@pytest.mark.parametrize("name, boundary", zip(EXPERTS, (0.875, 0.9)))
def test_the_experts_have_the_official_boundary_and_meet_just_above_a_step(name, boundary):
    grid, _ = grid_of(load_config(name))
    assert grid.boundary == boundary and grid.sides() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", ["cogvideox5b_4nfe", "cogvideox1.5_5b_4nfe"])
def test_every_cogvideox_has_the_noise_levels_of_the_released_grid(name):
    """Each timestep is the one nearest to the log-SNR of the CogVideoX-2B grid."""
    grid, process = grid_of(load_config(name))
    released, table = grid_of(load_config("cogvideox2b_4nfe"))
    assert len(grid.times) == len(released.times) and grid.times[-1] == released.times[-1] == 1

    def log_snr(process, times):
        alpha, sigma = process.alpha_sigma(torch.tensor(times))
        return 2 * (alpha.log() - sigma.log())

    for time, wanted in zip(grid.times[1:-1], released.times[1:-1], strict=True):
        target = log_snr(table, [wanted])
        near = log_snr(process, [time, time - 1 / process.count, time + 1 / process.count]) - target
        assert near.abs().argmin() == 0


@pytest.mark.parametrize(
    "hub_id",
    [
        "THUDM/CogVideoX-2b",
        "zai-org/CogVideoX-2b",
        "zai-org/CogVideoX-5B",
        "zai-org/CogVideoX1.5-5B",
    ],
)
def test_a_model_is_planned_offline_under_its_former_and_its_present_owner(hub_id):
    folder, family = find_family(ModelConfig(path=hub_id), weights=False)
    assert folder.parent == ARCHITECTURES and family.pipeline_class == "CogVideoXPipeline"


@pytest.mark.parametrize("hub_id", ["zai-org/CogVideoX-9b", "else/CogVideoX-2b", "CogVideoX-2b"])
def test_another_model_is_not_taken_for_a_known_one(hub_id):
    assert packaged_configs(hub_id) is None


UPCAST = ("PixArt-alpha", "THUDM", "stabilityai", "Tongyi-MAI", "black-forest-labs")
"""Owners of models with autoencoders that overflow in float16, according to their configs."""


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("wan")])
def test_an_autoencoder_that_overflows_in_float16_is_kept_in_float32(name):
    config = load_config(name).model
    folder, family = find_family(config, weights=False)
    dtypes = [
        family.spec.vae_dtype(folder, replace(config, dtype=dtype))
        for dtype in ("float16", "bfloat16")
    ]
    wide = torch.float32 if config.path.startswith(UPCAST) else torch.float16
    assert dtypes == [wide, torch.bfloat16]
