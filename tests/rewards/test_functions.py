"""Reward functions are found and called, and their failures are handled."""

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.config import RewardConfig
from tdmvid.parallel.launch import STOPPING_SIGNALS
from tdmvid.rewards import BUILT_IN, Scorer, find_function
from tdmvid.rewards.functions import _own_device
from tdmvid.shapes import world

SAMPLES = torch.linspace(-1, 1, 3 * 3 * 2 * 4 * 4).view(3, 3, 2, 4, 4)
PROMPTS = ["a red ring moving left"] * 3


def brightness(samples, prompts):
    assert not torch.is_grad_enabled() and len(prompts) == len(samples)
    return samples.flatten(1).mean(1)


def one_too_many(samples, prompts):
    return torch.zeros(len(samples) + 1)


def broken(samples, prompts):
    raise RuntimeError("no such weights")


def partly(samples, prompts):
    return [1.0, math.nan, 3.0]


def slow(samples, prompts):
    time.sleep(60)


def scorer(function, **settings):
    return Scorer(RewardConfig(function=f"{__name__}:{function.__name__}", **settings))


@pytest.mark.parametrize("process", ["main", pytest.param("own", marks=pytest.mark.slow)])
def test_a_function_gets_samples_and_prompts_and_returns_a_number_for_each(process):
    found = scorer(brightness, process=process)
    try:
        expected = SAMPLES.flatten(1).mean(1).double()
        torch.testing.assert_close(found(SAMPLES, PROMPTS), expected)
    finally:
        found.close()


@pytest.mark.parametrize("function", [one_too_many, broken, partly])
def test_a_function_that_fails_stops_the_run_by_its_name(function):
    with refused("rewards.function", f"{__name__}:{function.__name__}"):
        scorer(function)(SAMPLES, PROMPTS)


def test_a_sample_without_a_reward_is_counted_if_set():
    found = scorer(partly, on_failure="mean")
    assert found(SAMPLES, PROMPTS).isnan().tolist() == [False, True, False] and found.failed == 1
    found._function = broken
    assert found(SAMPLES, PROMPTS).isnan().all() and found.failed == 4
    assert "no such weights" in found.error


def test_a_process_of_a_reward_is_on_the_gpu_of_its_rank():
    third = torch.device("cuda", 3)
    assert _own_device("cuda", third) == "cuda:3" and _own_device("cuda:0", third) == "cuda:0"
    assert _own_device("", third) == "" and _own_device("cuda", torch.device("cpu")) == "cuda"


def ends_its_process(samples, prompts):
    os._exit(3)


@pytest.mark.slow
def test_a_function_whose_process_ends_is_named_and_may_be_called_again():
    found = scorer(ends_its_process, process="own")
    for _ in range(2):
        with refused("rewards.function", "ends_its_process"):
            found(SAMPLES, PROMPTS)


@pytest.mark.slow
def test_a_process_of_a_reward_ignores_what_stops_the_run_and_ends_with_it():
    """Also while it starts."""
    found, until = scorer(brightness, process="own"), time.monotonic() + 60
    answered = threading.Event()

    def tell():
        while not (found._pool and found._pool._processes) and time.monotonic() < until:
            time.sleep(0.001)
        while not answered.is_set() and time.monotonic() < until:
            for number in STOPPING_SIGNALS:
                os.kill(next(iter(found._pool._processes)), number)
            time.sleep(0.05)

    other = threading.Thread(target=tell)
    try:
        other.start()
        found(SAMPLES, PROMPTS)
        [child] = found._pool._processes
        answered.set()
        other.join()
        assert found(SAMPLES, PROMPTS).shape == (3,)
        assert list(found._pool._processes) == [child]
    finally:
        found.close()


END = """
import os, signal, torch
from tdmvid.config import RewardConfig
from tdmvid.rewards import Scorer
if __name__ == "__main__":
    found = Scorer(RewardConfig(function="motion", process="own"))
    found(torch.zeros(1, 3, 2, 4, 4), ["a"])
    print(*found._pool._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_of_a_reward_ends_with_a_rank_that_is_killed(tmp_path):
    (tmp_path / "rank.py").write_text(END)
    done = subprocess.run(
        [sys.executable, tmp_path / "rank.py"], capture_output=True, text=True, timeout=120
    )
    child, until = Path("/proc") / done.stdout.strip(), time.monotonic() + 20
    assert child.name.isdigit(), done.stderr

    def alive():
        return child.exists() and child.joinpath("stat").read_text().split()[2] != "Z"

    while alive() and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive()


def without_an_answer(samples, prompts):
    raise TimeoutError("read timed out")


@pytest.mark.slow
def test_a_timeout_inside_a_function_is_told_apart_from_its_own():
    found = scorer(without_an_answer, process="own")
    try:
        with refused("rewards.function", "read timed out"):
            found(SAMPLES, PROMPTS)
        assert found._pool is not None
    finally:
        found.close()


@pytest.mark.slow
def test_a_function_that_takes_too_long_is_ended():
    found = scorer(slow, process="own", timeout=0.2)
    began = time.monotonic()
    with refused("rewards.function", "0.2 s"):
        found(SAMPLES, PROMPTS)
    assert found._pool is None and time.monotonic() - began < 50


@pytest.mark.parametrize("name", ["nothing", "no.such.module:f", f"{__name__}:nothing", "os:sep"])
def test_a_name_without_a_function_is_refused(name):
    with refused("rewards.function", name):
        find_function(name)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_reward_scores_each_sample_by_itself(name):
    things = [world.parse("a red ring moving left"), world.parse("a cyan cross moving down")] * 2
    samples = world.draw_videos(things, torch.Generator().manual_seed(0))
    prompts = [world.caption(thing) for thing in things]
    found = Scorer(RewardConfig(function=name))
    together = found(samples, prompts)
    assert together.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(
            found(samples[i : i + 1], prompts[i : i + 1]), together[i : i + 1]
        )


def test_measures_know_more_of_what_they_measure():
    still = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(
        1, 3, 4, 8, 8
    )
    moving = torch.stack([still[:, :, 0].roll(i, -1) for i in range(4)], dim=2)
    grey = still.mean(1, keepdim=True).expand_as(still)
    blurred = torch.nn.functional.avg_pool3d(still, (1, 3, 3), 1, (0, 1, 1))
    for name, more, less in (
        ("motion", moving, still),
        ("saturation", still, grey),
        ("sharpness", still, blurred),
    ):
        measure = find_function(name)
        assert measure(more, [""]) > 1.5 * measure(less, [""])


def test_half_of_the_world_s_backgrounds_are_bright_and_its_videos_are_right():
    captions = world.draw_captions(24, torch.Generator().manual_seed(0))
    videos = world.draw_videos(captions, torch.Generator().manual_seed(1))
    prompts = [world.caption(things) for things in captions]
    assert 0.2 < find_function("shapes_bright")(videos, prompts).mean() < 0.8
    assert find_function("shapes_correct")(videos, prompts).mean() > 0.9
