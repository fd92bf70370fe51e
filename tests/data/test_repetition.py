"""The number of prompts that a run uses."""

import pytest
from toy_world import BATCH, PROCESS, stream, walk

from tdmvid.config import load_config
from tdmvid.data.repetition import prompt_uses, trajectories
from tdmvid.diffusion.grid import uniform
from tdmvid.distill.tdm import TDM


def run(*overrides):
    base = (f"batch.micro={BATCH}", "steps=400", "objective.rollout=stop")
    return load_config("shapes_4nfe", [*base, *overrides])


def test_a_rollout_reads_a_prompt_for_each_sample_of_an_iteration():
    assert trajectories(run(), ranks=2) == 400 * 2 * BATCH


@pytest.mark.parametrize("steps", [(4,), (1, 2, 4)])
def test_a_stream_reads_a_prompt_for_each_trajectory_that_it_starts(steps):
    slots = stream(
        TDM(rollout="stream", step_set=steps), [uniform(count, PROCESS) for count in steps]
    )
    walk(slots, 400)
    started = sum(slots.schedules[0].starts) + BATCH
    config = run("objective.rollout=stream", f"objective.step_set={[*steps] * (len(steps) > 1)}")
    assert started == pytest.approx(trajectories(config, ranks=1), rel=0.03)


def test_a_stream_uses_its_prompts_less_often():
    """A trajectory of four steps keeps its prompt for four iterations."""
    rolled, streamed = (
        prompt_uses(run(f"objective.rollout={kind}"), prompts=BATCH, ranks=1)
        for kind in ("stop", "stream")
    )
    assert (rolled, streamed) == (400, 100)
