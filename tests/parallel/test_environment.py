"""Variables of a launcher: a waiting process names the others, and invalid values are refused."""

import time

import pytest
from refusals import refused

from tdmvid.parallel import launch
from tdmvid.parallel.environment import Launched, launched, launcher_of, waiting

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Return `environment(RANK="0", ...)`, which sets these variables and no others."""

    def environment(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return environment


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "", "RANK": ""},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "8"},
        {"RANK": "3"},
    ],
    ids=str,
)
def test_without_a_launcher_a_process_runs_alone(environment, variables):
    environment(**variables)
    assert launched() is None
    assert launch.start("auto").size == 1


@pytest.mark.parametrize(
    "variables, fact",
    [
        ({"WORLD_SIZE": "auto"}, "WORLD_SIZE='auto'"),
        ({"WORLD_SIZE": "auto", "RANK": "0"}, "WORLD_SIZE='auto'"),
        ({"WORLD_SIZE": "2", "RANK": "zero"}, "RANK='zero'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "-1", "RANK": "0"}, "WORLD_SIZE='-1'"),
        ({"WORLD_SIZE": "2.5", "RANK": "0"}, "WORLD_SIZE='2.5'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT"),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "x"},
            "MASTER_PORT='x'",
        ),
        ({"WORLD_SIZE": "9" * 5000, "RANK": "0"}, "WORLD_SIZE"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_no_launcher_sets_is_refused_by_name(environment, variables, fact):
    environment(**variables)
    with refused(fact, "unset") as caught:
        launch.start("auto")
    assert len(str(caught.value)) < 400


def test_a_command_of_one_process_says_how_to_start_it(environment):
    """Its user has set no parallel.backend."""
    environment(WORLD_SIZE="2", RANK="0")
    with refused("WORLD_SIZE=2", "without a launcher", "unset RANK and WORLD_SIZE") as caught:
        launch.start_alone()
    assert "parallel.backend" not in str(caught.value)
    environment()
    assert launch.start_alone().size == 1


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, "tdmvid train"),
        ({"LOCAL_WORLD_SIZE": "4"}, "torchrun --nproc_per_node 4 -m tdmvid train"),
        ({"LOCAL_SIZE": "2"}, "torchrun --nnodes 2 --nproc_per_node 2 -m tdmvid train"),
    ],
    ids=str,
)
def test_the_command_of_a_run_contains_its_launcher(environment, variables, expected):
    joined = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    environment(**(variables and joined | variables))
    assert launcher_of("tdmvid train") == expected


def test_a_process_says_whom_it_waits_for(environment, capsys):
    environment(RANK="1", WORLD_SIZE="4", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    found = launched()
    assert found == Launched(1, 4, "10.0.0.1:29500")
    with waiting(found, patience=0.01):
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert all(fact in said for fact in ("RANK=1", "WORLD_SIZE=4", "3 other", "10.0.0.1:29500"))
    with waiting(found, patience=60):
        pass
    assert not capsys.readouterr().err


def test_others_who_do_not_come_are_named_at_the_end():
    with refused("RANK=0", "WORLD_SIZE=2", "here:1"), waiting(Launched(0, 2, "here:1")):
        raise RuntimeError("Timed out after 31 seconds waiting for clients.\nC++ stack")
