"""Planned calls, parameters, activations and compute equal those of real networks and runs."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tdmvid.diffusion.denoiser import Guided
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import build_objective
from tdmvid.distill.trajectories import Place, pick_k
from tdmvid.parallel import launch
from tdmvid.plan import cost
from tdmvid.plan.calls import calls_per_iteration
from tdmvid.plan.make import make_plan
from tdmvid.plan.storage import count_storage
from tdmvid.train.monitor import read_metrics
from tdmvid.train.run import build_run, build_stream
from tdmvid.train.trainer import micro_batches, train

STEPS, MICRO = 2, 2


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    return build_run(
        tiny_run(tmp_path_factory.mktemp("plan"), f"batch.micro={MICRO}"), launch.start("none")
    )


class Counted:
    """Count the forward and backward passes of the engines within this context, in whole batches. A
    guided call counts as two.
    """

    def __init__(self, engines):
        self.engines, self.forwards, self.backwards = engines, 0.0, 0

    def __enter__(self):
        self.hooks = [
            e.module.register_forward_pre_hook(self._forward, with_kwargs=True)
            for e in self.engines.values()
        ]
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
@pytest.mark.parametrize(
    "fake_updates, draws, fake_trajectories",
    [(1, "own", "same"), (2, "own", "same"), (3, "own", "fresh"), (1, "shared", "same")],
)
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("rollout", ["stop", "full", "stream"])
def test_the_planned_calls_are_those_of_the_loop(
    run, rollout, cfg, fake_updates, draws, fake_trajectories, accumulation
):
    objective = replace(
        run.config.objective,
        rollout=rollout,
        cfg=cfg,
        fake_updates=fake_updates,
        draws=draws,
        fake_trajectories=fake_trajectories,
    )
    config = replace(
        run.config, objective=objective, batch=replace(run.config.batch, accumulation=accumulation)
    )
    world, shape = launch.start("none"), run.backbone.latent_shape()
    run = replace(
        run,
        config=config,
        roles=replace(run.roles, teacher=Guided(run.roles.teacher.denoiser, run.null, cfg)),
        stream=build_stream(config, world, run.streams, run.grids, shape),
    )
    if run.stream is not None:  # the first rollout does not belong to an iteration
        run.stream.begin(run.roles.student, micro_batches(run, 0))
    forwards, backwards = calls_per_iteration(config)
    grid, expected, own_trajectories = config.grid.steps, 0.0, objective.own_trajectories
    with Counted(run.engines) as counted:
        engines = {role: counted.backward(engine) for role, engine in run.engines.items()}
        for step in range(STEPS):
            iterate(
                step,
                micro_batches(run, step),
                (MICRO, *shape),
                objective=build_objective(objective),
                roles=run.roles,
                engines=engines,
                grid=run.grid,
                streams=run.streams,
                stream=run.stream,
            )
            # The plan uses the mean of K - k calls over all k; here each k is known.
            expected += accumulation * forwards
            if rollout == "stream":
                continue
            for micro, own in itertools.product(range(accumulation), range(own_trajectories + 1)):
                place = Place(step, micro, micro, own)
                k = pick_k(place, objective, run.grid, MICRO, run.streams)[0]
                expected += (grid - int(k)) - (grid - 1) / 2 if rollout == "stop" else 0
    assert counted.forwards == expected
    assert counted.backwards == accumulation * STEPS * backwards


@pytest.mark.parametrize(
    "changes, forwards",
    [
        ((), 6.5),
        (("objective.draws=shared",), 5.5),
        (("objective.rollout=full",), 8),
        (("objective.rollout=stream",), 5),
        (("objective.rollout=stream", "grid.steps=8"), 5),
        (("objective.rollout=stream", "objective.draws=shared"), 4),
        (("objective.rollout=stream", "batch.accumulation=2"), 6),
        (("objective.rollout=stream", "batch.accumulation=2", "objective.updates=joint"), 5),
    ],
)
def test_what_four_steps_with_guidance_cost(tiny_run, tmp_path, changes, forwards):
    assert calls_per_iteration(tiny_run(tmp_path, "objective.cfg=3", *changes)) == (forwards, 2)


def test_a_run_records_the_calls_that_were_planned(tiny_run, tmp_path, loop_only):
    train(
        tiny_run(
            tmp_path, "objective.cfg=3", "objective.rollout=full", "batch.accumulation=2", "steps=2"
        )
    )
    assert read_metrics(tmp_path / "metrics.jsonl")["calls"] == [
        9.0,
        9.0,
    ]  # 8, plus the repeated graded call of each micro-batch


def test_an_explicit_grid_counts_its_timesteps(tiny_run, tmp_path, plan):
    config = tiny_run(
        tmp_path, "grid.kind=explicit", "grid.timesteps=[999,499]", "objective.rollout=full"
    )
    assert calls_per_iteration(config)[0] == 1 + 1 + 1 + 1 + 1
    assert re.search("student +2 steps, explicit grid", plan(config))


def numbers(text, pattern):
    return int(re.search(pattern, text)[1].replace(",", ""))


def test_the_planned_parameters_and_tokens_are_those_of_the_networks(run, plan):
    text, student = plan(run.config), run.engines["student"]
    adapters = sum(p.numel() for p in student.trainable.values())
    base = sum(p.numel() for p in student.module.parameters()) - adapters
    assert numbers(text, r"([\d,]+) parameters in float32") == base > 10_000
    assert (
        numbers(text, r"([\d,]+) trainable parameters each")
        == adapters
        == sum(p.numel() for p in run.engines["fake"].trainable.values())
    )
    tokens = []
    hook = student.module.transformer_blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(
            sum(kwargs[name].shape[1] for name in ("hidden_states", "encoder_hidden_states"))
        ),
        with_kwargs=True,
    )
    run.roles.student(torch.randn(1, *run.backbone.latent_shape()), torch.ones(1), run.null)
    hook.remove()
    assert numbers(text, r"tokens +([\d,]+) per video") == tokens[0]


@pytest.mark.slow
def test_whole_networks_are_planned_as_such(tiny_run, tmp_path, plan):
    text = plan(tiny_run(tmp_path, "training=full"))
    assert (
        numbers(text, r"([\d,]+) parameters in") == numbers(text, r"([\d,]+) trainable")
        and "3 full networks" in text
    )


@pytest.mark.parametrize(
    "changes",
    [(), ("objective.step_set=[2,4]",), ("training=full",)],
    ids=["lora", "told K", "full"],
)
def test_the_planned_trainable_parameters_are_those_of_each_role(
    tiny_run, tmp_path, changes, planned
):
    config = tiny_run(tmp_path, *changes)
    expected, run = planned(config).weights.trainable, build_run(config, launch.start("none"))
    assert [
        sum(p.numel() for p in run.engines[role].trainable.values()) for role in ("student", "fake")
    ] == [expected, expected]


def kept_by_autograd(network, call) -> int:
    """Return the bytes of activations that a real forward pass keeps for its backward pass."""
    storages = {
        p.untyped_storage().data_ptr(): 0 for p in (*network.parameters(), *network.buffers())
    }

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    assert out.requires_grad
    return sum(storages.values())


def test_the_planned_activations_and_work_are_those_of_a_real_call(run):
    made, student = make_plan(run.config), run.engines["student"]
    x, t = torch.randn(MICRO, *run.backbone.latent_shape()), torch.ones(MICRO)
    with FlopCounterMode(display=False, custom_mapping=cost.ATTENTION_ON_A_CPU) as counter:
        kept = kept_by_autograd(
            student.module, lambda: run.roles.student(x, t, run.null.expand(MICRO))
        )
    assert made.calls.network.forward_flops == counter.get_total_flops() > 1e5
    assert made.calls.network.plain.kept == pytest.approx(
        kept, rel=0.02
    )  # converting v to x0 keeps slightly more


@pytest.mark.slow
def test_checkpointing_keeps_less_and_a_second_rank_takes_its_share(tiny_run, tmp_path, planned):
    one = planned(tiny_run(tmp_path))
    two = planned(tiny_run(tmp_path, "parallel.sequence=2"), ranks=2)
    one_call, two_call = one.calls.network, two.calls.network
    assert one_call.checkpointed.kept < one_call.plain.kept
    assert two_call.plain.kept < 0.7 * one_call.plain.kept
    assert two_call.forward_flops < 0.7 * one_call.forward_flops
    assert two.traffic()["tokens"] > 0 and one.traffic() == {}


def test_only_one_graph_computes_a_block_again_at_a_time(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "parallel.gradient_checkpointing=true"))
    memory, call = made.memory(), made.calls.network.checkpointed
    assert made.graphs == 2 and memory["activations"] == 2 * call.kept
    assert memory["working memory"] + call.kept in (call.early, call.end)


@pytest.mark.parametrize("stage, trained", [(0, 2), (1, 3), (2, 3), (3, 1)])
def test_a_ring_adds_gradients_up_and_spreads_what_is_not_sharded(
    tiny_run, tmp_path, stage, trained, planned
):
    made = planned(tiny_run(tmp_path, f"parallel.zero_stage={stage}"), ranks=4)
    traffic = made.traffic()
    assert (
        traffic["gradients"] + traffic["updated weights"]
        == trained * 2 * made.weights.trainable * 4 * 3 / 4
    )


def test_zero_3_shares_weights_and_optimiser_among_ranks(tiny_run, tmp_path, planned):
    one, four = (planned(tiny_run(tmp_path, "ema=0.9"), ranks=ranks).memory() for ranks in (1, 4))
    for name in ("frozen weights", "trained weights, float32", "optimiser", "average"):
        assert four[name] == one[name] / 4
    assert four["gradients"] == four["trained weights, float32"]
    assert (
        "optimiser"
        not in planned(tiny_run(tmp_path, "parallel.offload=optimizer"), ranks=4).memory()
    )


def test_the_guard_s_calls_are_counted(tiny_run, tmp_path, plan):
    """One prompt and two noises: 4 student calls in addition to the gallery, and 50 teacher steps
    with guidance and 4 calls of the untrained network for each noise.
    """
    changes = ("log.teacher_steps=50", "objective.cfg=3", "log.sample_every=10")
    text = plan(tiny_run(tmp_path, *changes))
    row = next(line for line in text.splitlines() if line.startswith("guard"))
    assert "4 student calls every 10 iterations" in row and "208 calls once" in row
    off = plan(tiny_run(tmp_path, *changes, "guard.action=off"))
    assert "off (guard.action)" in off


def test_the_best_checkpoint_is_counted_where_it_is_kept(tiny_run, tmp_path, planned):
    sampled = count_storage(planned(tiny_run(tmp_path, "log.sample_every=1"))).checkpoints
    plain = count_storage(planned(tiny_run(tmp_path))).checkpoints
    assert sampled == pytest.approx(4 / 3 * plain)
    best = count_storage(
        planned(
            tiny_run(tmp_path, "log.checkpoint_every=0", "log.sample_every=1", "export.select=best")
        )
    )
    assert best.checkpoints == sampled  # `keep_checkpoints`, the best, and the one being written


def test_every_exported_student_is_counted(tiny_run, tmp_path, planned):
    one = count_storage(planned(tiny_run(tmp_path))).export
    three = planned(tiny_run(tmp_path, "objective.step_set=[1,2,4]"))
    assert count_storage(three).export == 3 * 4 * three.weights.trainable >= 3 * one
