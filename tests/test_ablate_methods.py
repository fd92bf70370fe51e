"""Methods that are not part of tdmvid: consistency distillation, the published call pattern and
TDM-R1 on the embedded teacher.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import shapes_tdmr1
import torch
from refusals import refused

from ablations import loops, shapes
from ablations.consistency import POINTS, Consistency, Videos, neighbours
from ablations.tdmr1 import Preferences
from tdmvid.config import load_config
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.objective import Roles
from tdmvid.parallel.rng import Streams

PROCESS, BATCH = RectifiedFlow(), 64


class Constant:
    """A prediction that depends on nothing."""

    process = PROCESS

    def __init__(self, value):
        self.value = torch.tensor(float(value), requires_grad=True)

    def __call__(self, x_t, t, cond):
        return self.value.expand(x_t.shape)


class Recorded:
    """An engine that keeps the losses. Its average differs from the prediction by `lag`."""

    def __init__(self, network, lag):
        self.losses, self.network, self.lag = [], network, lag

    @contextmanager
    def averaged(self):
        self.network.value = self.network.value + self.lag
        yield
        self.network.value = self.network.value - self.lag

    def backward(self, loss):
        self.losses.append(float(loss.detach()))

    def step(self, *, skip=False):
        return SimpleNamespace(applied=not skip, grad_norm=0.0)


def loss(teacher, student, lag=0.0):
    """The loss of a student whose data are all equal to what the teacher predicts."""
    videos = Videos(torch.full((BATCH, 3), float(teacher)), list(range(BATCH)))
    network = Constant(student)
    engine, roles = Recorded(network, lag), Roles(network, None, Constant(teacher))
    turn = Consistency(videos, PROCESS)
    outcome = turn(
        0, [Cond({})], (BATCH, 3), roles=roles, engines={"student": engine}, streams=Streams(0)
    )
    assert not outcome.failed
    return engine.losses[0]


def test_a_student_that_maps_every_point_of_a_trajectory_to_its_end_has_no_loss():
    assert loss(0.5, 0.5) == pytest.approx(0, abs=1e-5)


def test_only_the_last_step_tells_the_student_where_a_trajectory_ends():
    """A constant student agrees with itself everywhere; only f(x, 0) = x ties it to the data."""
    u = torch.rand(BATCH, generator=Streams(0).generator(0, "consistency"))
    last = float((u < 1 / POINTS).float().mean())
    assert last > 0
    assert loss(0.5, 0.8) == pytest.approx(0.3 * last, rel=0.02)


def test_the_target_is_a_prediction_of_the_averaged_weights():
    u = torch.rand(BATCH, generator=Streams(0).generator(0, "consistency"))
    inner = float((u >= 1 / POINTS).float().mean())
    assert loss(0.5, 0.5, lag=0.2) == pytest.approx(0.2 * inner, rel=0.02)


def test_the_points_are_neighbours_on_the_teachers_grid():
    grid = uniform(POINTS, PROCESS)
    later, earlier = neighbours(grid, torch.linspace(0, 1 - 1e-6, 1000))
    torch.testing.assert_close(later - earlier, torch.full((1000,), 1 / POINTS))
    assert earlier.min() == 0 and later.max() == 1 and len(later.unique()) == POINTS


def small(folder, *changes):
    """The settings of the shapes suite with a batch of two."""
    words = [f"out={folder}", "batch.micro=2", "steps=2", "log.sample_every=0", *shapes.BASE]
    return load_config(Path("configs/shapes_4nfe.json"), [*words, *changes])


@pytest.mark.slow
@pytest.mark.parametrize("name", shapes.METHODS)
def test_a_method_trains_the_student(name, tmp_path, monkeypatch):
    real = shapes.consistency
    monkeypatch.setattr(shapes, "consistency", lambda run, prompts: real(run, prompts, 4))
    run = loops.start(small(tmp_path / "run"))
    before = run.engines["student"].weights(averaged=False)
    scalars = list(loops.iterations(run, shapes.METHODS[name](run)))
    assert len(scalars) == 2 and all(found["loss/student"] > 0 for found in scalars)
    after = run.engines["student"].weights(averaged=False)
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_tdmr1_trains_a_student_that_can_be_measured(tmp_path, monkeypatch):
    words = ["--out", tmp_path, "--iterations", 2, "--reward", "shapes_bright", "--set", "group=4"]
    monkeypatch.setattr(sys, "argv", ["shapes_tdmr1.py", *map(str, words)])
    shapes_tdmr1.main()
    facts = json.loads((tmp_path / "tdmr1.json").read_text())
    assert facts["settings"]["group"] == 4 and len(facts["iterations"]) == 2
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()


def test_settings_of_tdmr1_are_read_with_their_types():
    found = shapes_tdmr1.read_preferences(["group=4", "weight=2", "normaliser=teacher"])
    assert found == Preferences(group=4, weight=2.0, normaliser="teacher", guidance=1.0)


@pytest.mark.parametrize("word", ["wieght=2", "weight=much", "normaliser=none", "group"])
def test_wrong_settings_of_tdmr1_are_refused(word):
    with refused("--set", word.partition("=")[2] or word):
        shapes_tdmr1.read_preferences([word])
