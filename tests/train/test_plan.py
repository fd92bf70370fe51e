"""The plan tells what the run then does: network calls are counted in the real loop, parameters in the real networks."""

import re
from dataclasses import replace

import pytest
import torch

from tdmvid.diffusion.denoiser import Guided
from tdmvid.distill.iteration import iterate, pick_k
from tdmvid.parallel import launch
from tdmvid.train.plan import calls_per_iteration, plan
from tdmvid.train.setup import build_run
from tdmvid.train.trainer import _micro_batches

STEPS, MICRO = 2, 2


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return build_run(tiny_run(tmp_path_factory.mktemp("plan"), f"batch.micro={MICRO}"), launch.start("none"))


class Counted:
    """Whole-batch forwards (a guided call is two) and backwards of the engines, while it is entered."""

    def __init__(self, engines):
        self.engines, self.forwards, self.backwards = engines, 0.0, 0

    def __enter__(self):
        self.hooks = [e.module.register_forward_pre_hook(self._forward, with_kwargs=True) for e in self.engines.values()]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def _forward(self, module, args, kwargs):
        self.forwards += len(kwargs["hidden_states"]) / MICRO

    def backward(self, engine):
        counted = self

        class Wrapped:
            def backward(self, loss):
                counted.backwards += 1
                engine.backward(loss)

            def step(self, **options):
                return engine.step(**options)

        return Wrapped()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("fake_updates", [1, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("rollout", ["stop", "full"])
def test_the_planned_calls_are_those_of_the_loop(run, rollout, cfg, fake_updates, accumulation):
    objective = replace(run.config.objective, rollout=rollout, cfg=cfg, fake_updates=fake_updates)
    config = replace(run.config, objective=objective, batch=replace(run.config.batch, accumulation=accumulation))
    run = replace(run, config=config, roles=replace(run.roles, teacher=Guided(run.roles.teacher.denoiser, run.null, cfg)))
    forwards, backwards = calls_per_iteration(config)
    grid, expected = config.grid.steps, 0.0
    with Counted(run.engines) as counted:
        engines = {role: counted.backward(engine) for role, engine in run.engines.items()}
        for step in range(STEPS):
            iterate(
                step, _micro_batches(run, step), (MICRO, *run.backbone.latent_shape()),
                objective=objective, roles=run.roles, engines=engines, grid=run.grid, streams=run.streams,
            )
            # The plan has the mean over k of K - k calls; here k is known.
            k = pick_k(objective, run.grid, MICRO, run.streams.generator(step, "k", device="cpu"), own=None)[0] if rollout == "stop" else None
            expected += forwards + (0 if k is None else (grid - int(k)) - (grid - 1) / 2)
    assert counted.forwards == accumulation * expected
    assert counted.backwards == accumulation * STEPS * backwards


def test_with_guidance_four_steps_cost_six_and_a_half_forwards(tiny_run, tmp_path):
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3")) == (6.5, 2)
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3", "objective.rollout=full")) == (8, 2)


def test_an_explicit_grid_counts_its_timesteps(tiny_run, tmp_path):
    config = tiny_run(tmp_path, "grid.kind=explicit", "grid.timesteps=[999,499]", "objective.rollout=full")
    assert calls_per_iteration(config)[0] == 1 + 1 + 1 + 1 + 1
    assert re.search("student +2 steps, explicit grid", plan(config))


def numbers(text, pattern):
    return int(re.search(pattern, text)[1].replace(",", ""))


def test_the_planned_parameters_and_tokens_are_those_of_the_networks(run):
    text, student = plan(run.config), run.engines["student"]
    adapters = sum(p.numel() for p in student.trainable.values())
    base = sum(p.numel() for p in student.module.parameters()) - adapters
    assert numbers(text, r"([\d,]+) parameters in float32") == base > 10_000
    assert numbers(text, r"([\d,]+) trainable parameters each") == adapters == sum(p.numel() for p in run.engines["fake"].trainable.values())
    tokens = []
    hook = student.module.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(sum(kwargs[name].shape[1] for name in ("hidden_states", "encoder_hidden_states"))), with_kwargs=True
    )
    run.roles.student(torch.randn(1, *run.backbone.latent_shape()), torch.ones(1), run.null)
    hook.remove()
    assert numbers(text, r"tokens +([\d,]+) per video") == tokens[0]


def test_whole_networks_are_planned_as_such(tiny_run, tmp_path):
    text = plan(tiny_run(tmp_path, "training=full"))
    assert numbers(text, r"([\d,]+) parameters in") == numbers(text, r"([\d,]+) trainable") and "3 whole networks" in text


def test_a_plan_writes_nothing(tiny_run, tmp_path):
    plan(tiny_run(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
