"""DeepSpeed engines compared with the one-process engine, over whole TDM iterations.

A run depends on the number of ranks and of micro-batches. Streams make two ranks draw the same
numbers as one rank with two micro-batches, so both must learn the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from deepspeed_runs import (
    ADAMW,
    SGD,
    Case,
    assert_same_run,
    part,
    run,
    write_model,
)
from ranks import run_ranks
from refusals import refused

from tdmvid.parallel import collectives, launch
from tdmvid.parallel.deepspeed_config import deepspeed_config

OPTIMS = pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])


@OPTIMS
@pytest.mark.slow
def test_the_reference_moves_far_more_than_the_tolerance(reference, optim):
    first, *_, last = reference(optim=optim)["weights"]
    for role in ("student/own", "fake/own"):
        assert (
            max(np.abs(value - first[name]).max() for name, value in part(last, role).items())
            > 1e-4
        )


@OPTIMS
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.slow
def test_zero_3_on_any_ranks_is_one_process_with_the_same_micro_batches(
    model, reference, ranks, optim
):
    for result in run_ranks(ranks, run, Case(model, optim=optim)):
        assert_same_run(result, reference(optim=optim))


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.slow
def test_one_call_of_the_fake_serves_both_turns_on_two_ranks_as_in_one_process(
    model, reference, stage
):
    expected = reference(draws="shared")
    for result in run_ranks(2, run, Case(model, draws="shared", zero_stage=stage)):
        assert_same_run(result, expected)


@pytest.mark.parametrize(
    "sequence, updates", [(1, "joint"), (2, "sequential")], ids=["data-joint", "sequence"]
)
@pytest.mark.slow
def test_trajectories_that_go_on_are_those_of_one_process(model, reference, sequence, updates):
    """The run includes a turn that fails, after which the states are unchanged."""
    case = {"rollout": "stream", "updates": updates, "steps": 4, "poison": (2, 1)}
    expected = reference(**case)
    assert expected["failed"] == [None, None, "fake", None]
    for result in run_ranks(2, run, Case(model, sequence=sequence, **case)):
        assert_same_run(result, expected)


@OPTIMS
@pytest.mark.parametrize("rotary", [False, True], ids=["sincos", "rotary"])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.slow
def test_ranks_that_share_a_video_are_one_process_whatever_its_heads_and_tokens(
    tmp_path, ranks, rotary, optim
):
    """3 heads and 7 + 48 tokens are multiples of neither 2 nor 4; 4 ranks are two videos with two
    ranks each.
    """
    model = write_model(tmp_path, heads=3, layers=2, text=7, rotary=rotary)
    # two ranks on one video have as many micro-batches as one process
    case = Case(model, optim=optim, steps=4, rollout="stop" if ranks == 2 else "full")
    reference = run_ranks(1, run, replace(case, backend="torch"))[0]
    for result in run_ranks(ranks, run, replace(case, sequence=2)):
        # Adam divides a small gradient by its own size, so rounding moves a tenth of the rate
        assert_same_run(result, reference, weights=1e-4 if optim is ADAMW else 1e-5)


@pytest.mark.parametrize("sequence", [1, 2])
@pytest.mark.slow
def test_three_whole_networks_are_sharded_too(model, reference, sequence):
    optim = replace(SGD, lr=0.05)
    whole = reference(full=True, optim=optim)
    assert (
        max(
            np.abs(value - whole["weights"][0][name]).max()
            for name, value in whole["weights"][-1].items()
        )
        > 1e-4
    )
    for result in run_ranks(2, run, Case(model, full=True, optim=optim, sequence=sequence)):
        assert_same_run(result, whole)


@pytest.mark.parametrize("sequence", [1, 2])
@pytest.mark.slow
def test_attention_is_kept_while_weights_are_gathered_again(model, reference, sequence):
    """Fewer weights are gathered in the backward pass than in the forward pass."""
    for result in run_ranks(2, run, Case(model, kept=True, sequence=sequence)):
        assert_same_run(result, reference())


@pytest.mark.parametrize("live", [2_000, 10_000])
@pytest.mark.slow
def test_a_base_larger_than_what_is_gathered_at_a_time_trains_as_in_one_process(tmp_path, live):
    """One engine may need weights that another engine has started to prefetch."""
    case = Case(write_model(tmp_path, layers=4), optim=ADAMW, live=live)
    reference = run_ranks(1, run, replace(case, backend="torch"))[0]
    for result in run_ranks(2, run, case):
        assert_same_run(result, reference)


@pytest.mark.parametrize("offload", ["optimizer", "all"])
@pytest.mark.slow
def test_what_waits_in_host_memory_changes_nothing(model, reference, offload):
    trouble = {"optim": ADAMW, "steps": 4, "skip": (1, 1), "poison": (2, 1)}
    for result in run_ranks(2, run, Case(model, offload=offload, **trouble)):
        assert_same_run(result, reference(**trouble))


@pytest.mark.slow
def test_sharing_the_base_changes_nothing(model, reference):
    for result in run_ranks(2, run, Case(model, optim=ADAMW, shared=False)):
        assert_same_run(result, reference(optim=ADAMW))


def test_without_a_launcher_one_process_answers_for_itself(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = launch.start("auto")
    assert (world.rank, world.size, world.local_rank) == (0, 1, 0)
    assert (
        collectives.all_agree(True)
        and not collectives.all_agree(False)
        and collectives.mean({"a": 2.0}) == {"a": 2.0}
    )
    collectives.barrier()
    launch.finish()
    with refused("'deepspeed'"):
        launch.start("deepspeed")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refused("2"):
        launch.start("none")


def talk() -> list:
    world = launch.start("deepspeed", timeout_minutes=0.5)
    said = [
        collectives.all_agree(True),
        collectives.all_agree(world.rank == 0),
        collectives.mean({"b": float(world.rank), "a": 1.0}),
    ]
    collectives.barrier()
    launch.finish()
    return [world.rank, world.size, world.device.type, *said]


@pytest.mark.slow
def test_ranks_agree_and_average():
    assert run_ranks(2, talk) == [
        [rank, 2, "cpu", True, False, {"b": 0.5, "a": 1.0}] for rank in (0, 1)
    ]


def test_the_configuration_follows_the_optimiser_and_the_dtype():
    choices = {
        "zero_stage": 3,
        "micro_batch": 2,
        "accumulation": 4,
        "trainable": 1000,
        "persistence_threshold": 7,
    }
    config = deepspeed_config(ADAMW, cast_to=None, **choices)
    assert config["gradient_clipping"] == ADAMW.clip and config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 1000,
        "stage3_param_persistence_threshold": 7,
    }
    assert "torch_autocast" not in config
    assert (
        deepspeed_config(ADAMW, cast_to=torch.bfloat16, **choices)["torch_autocast"]["dtype"]
        == "bfloat16"
    )
