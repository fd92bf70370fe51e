"""A run that starts from a LoRA: the student starts from it, the fake from the base."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file

from tdmvid.adapters.load import load_student
from tdmvid.adapters.lora import adapters_off
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.config import RunConfig
from tdmvid.diffusion.sampler import ddim
from tdmvid.parallel import launch
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.train.checkpoint import Checkpoints
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train

WIDE = 'lora.targets=["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"]'


@pytest.fixture(scope="module")
def stage(tiny_run, tmp_path_factory):
    """A finished first stage."""
    folder = tmp_path_factory.mktemp("stage")
    train(tiny_run(folder, "steps=2", "log.checkpoint_every=0"))
    return folder


@pytest.fixture
def second(stage, tiny_run, tmp_path):
    """`second("lora.alpha=2")`: the run of the next stage, set up."""
    return lambda *changes: build_run(
        tiny_run(tmp_path, f"init={stage / 'lora'}", *changes), launch.start("none")
    )


def sample(run, role):
    z = torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    return ddim(getattr(run.roles, role), z, run.gallery, run.grid)


def first_stage_s_latents(run, stage):
    """Latents of stock diffusers with the LoRA of the first stage."""
    pipeline = run.backbone.stock.pipeline()
    load_student(pipeline, stage / "lora", run.backbone.lora)
    z = torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
    return run.backbone.stock.latents(pipeline, z, run.gallery, steps=4)


@pytest.mark.parametrize(
    "change", ["seed=0", "lora.alpha=1", WIDE], ids=["same", "another alpha", "more layers"]
)
def test_the_student_starts_where_the_lora_ended_and_the_fake_from_the_base(second, stage, change):
    run = second(change)
    student, fake, expected = (
        sample(run, "student"),
        sample(run, "fake"),
        first_stage_s_latents(run, stage),
    )
    with adapters_off(run.engines["student"].module):
        base = sample(run, "student")
    scale = float(expected.abs().max())
    torch.testing.assert_close(student, expected, atol=1e-4 * scale, rtol=0)
    assert (student - base).abs().max() > 1e-3 * scale and torch.equal(fake, base)


def test_the_average_starts_there_too(second):
    engine = second("ema=0.9").engines["student"]
    assert all(torch.equal(engine.average[name], p) for name, p in engine.trainable.items())
    assert any(p.abs().sum() > 0 for name, p in engine.average.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "change, facts",
    [
        ("lora.rank=3", ("lora.rank=3", "2")),
        ('lora.targets=["to_q"]', ("lora.targets",)),
        ("init=nowhere/lora", ("nowhere/lora", "no such LoRA file")),
    ],
)
def test_a_lora_that_does_not_fit_the_run_is_refused(second, change, facts):
    with refused(*facts, error=(ValueError, FileNotFoundError)):
        second(change)


@pytest.mark.parametrize("change", ["lora.rank=3", 'lora.targets=["to_q"]'])
def test_a_plan_refuses_a_lora_that_is_there_and_does_not_fit(tiny_run, stage, tmp_path, change):
    start = f"init={stage / 'lora'}"
    assert make_plan(tiny_run(tmp_path, start)).weights.trainable > 0
    with refused(f"init='{stage / 'lora'}'", error=ValueError):
        make_plan(tiny_run(tmp_path, start, change))


def test_a_lora_with_biases_is_refused(second, stage, tmp_path):
    layers = load_file(stage / "lora" / LORA_FILE)
    name, outer = next(
        (key, tensor) for key, tensor in layers.items() if key.endswith("lora_B.weight")
    )
    (tmp_path / "biased").mkdir()
    save_file(
        layers | {name.replace("weight", "bias"): torch.zeros(len(outer))},
        tmp_path / "biased" / LORA_FILE,
    )
    with refused(f"init='{tmp_path / 'biased'}'", "lora_B.bias"):
        second(f"init={tmp_path / 'biased'}")


def test_three_whole_networks_start_from_no_lora():
    with refused("init='x'", "training='full'"):
        RunConfig(init="x", training="full")


def test_a_run_with_another_start_does_not_continue_a_checkpoint(second, tmp_path):
    run = second()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    path = checkpoints.save(1, run.engines, run.fingerprint)
    checkpoints.wait()
    assert Checkpoints.load(path, run.engines, run.fingerprint) == 1
    other = replace(run, config=replace(run.config, init=""))
    with refused("step_000001", "init"):
        Checkpoints.load(path, other.engines, other.fingerprint)


@pytest.mark.slow
def test_a_checkpoint_goes_on_without_the_lora_it_started_from(tiny_run, stage, tmp_path):
    start = shutil.copytree(stage / "lora", tmp_path / "start")

    def config(name):
        return tiny_run(tmp_path / name, f"init={start}", "steps=2", "log.checkpoint_every=1")

    whole = train(config("whole"))
    shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_000002")
    shutil.rmtree(start)
    again = train(config("cut"), resume="auto")
    expected, found = (load_file(folder / "lora" / LORA_FILE) for folder in (whole, again))
    assert expected.keys() == found.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_a_plan_names_the_start_before_it_is_there(tiny_run, tmp_path):
    text = describe(make_plan(tiny_run(tmp_path, "init=runs/first/lora")))
    assert re.search(r"student starts from +runs/first/lora \(does not exist yet\)", text)
