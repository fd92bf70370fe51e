"""The host memory of a plan is what a run moves there or copies."""

import pytest

from tdmvid.config import load_config
from tdmvid.parallel import launch
from tdmvid.plan.deepspeed_state import SHARDED
from tdmvid.plan.describe import describe
from tdmvid.plan.host import MASTERS, host_moments, other_ranks
from tdmvid.plan.make import make_plan
from tdmvid.plan.units import gib
from tdmvid.train.run import build_run


def test_what_is_copied_is_what_is_planned(tiny_run, tmp_path):
    """Measured: the base that makes room for encoders, and the state that a checkpoint copies."""
    config = tiny_run(tmp_path / "run", "ema=0.9", "lora.rank=64")
    plan, run = make_plan(config), build_run(config, launch.start("none"))
    moments = host_moments(plan)
    frozen = {p.data_ptr(): p for p in run.backbone.network.parameters() if not p.requires_grad}
    assert moments["embedding the prompts"] == sum(p.nbytes for p in frozen.values())
    copied = sum(
        len(data) for engine in run.engines.values() for data in engine.snapshot().values()
    )
    moments_of_adamw = 2 * 4 * plan.weights.trained  # they exist after the first step
    planned = moments["writing a checkpoint"] - moments_of_adamw
    assert 0.95 * copied < planned <= copied


def test_offloaded_state_and_an_idle_expert_stay_on_the_host(planned, tiny_run, tmp_path):
    def resident(*changes, ranks=1):
        plan = planned(tiny_run(tmp_path, *changes), ranks=ranks)
        written = host_moments(plan)["writing a checkpoint"]
        sharded = SHARDED * 4 * plan.weights.trained
        return plan, written - (plan.state - sharded) - sharded / plan.shards(1)

    assert resident()[1] == 0
    plan, alone = resident("parallel.offload=optimizer")
    assert alone == MASTERS * 4 * plan.weights.trained
    assert resident("parallel.offload=optimizer", ranks=2)[1] == alone / 2
    plan, more = resident("parallel.offload=all", ranks=2)
    assert more == alone / 2 + plan.weights.base_bytes / 2


def test_only_the_first_rank_makes_room_for_the_encoders(planned, tiny_run, tmp_path):
    plan = planned(tiny_run(tmp_path), ranks=2)
    assert other_ranks(plan) == SHARDED * 4 * plan.weights.trained / 2
    assert max(host_moments(plan).values()) == plan.whole > other_ranks(plan)
    line = next(line for line in describe(plan).splitlines() if line.startswith("host memory"))
    assert gib(plan.whole) in line and gib(other_ranks(plan)) in line


@pytest.mark.slow
def test_the_expert_that_waits_is_on_the_host():
    plan = make_plan(load_config("wan2.2_a14b_4nfe", ["model.idle_expert=host"]))
    assert host_moments(plan)["writing a checkpoint"] == plan.whole / 2 + plan.state
