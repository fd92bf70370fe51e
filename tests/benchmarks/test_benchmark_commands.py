"""Every benchmark runs from its command to its table. What takes long is replaced."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
from refusals import refused

from benchmarks import (
    compiled,
    gpu,
    guard,
    iteration,
    large,
    quantized,
    race,
    sampling,
    scaling,
    stopwatch,
    toy,
    untrained,
)
from tdmvid.train.run import build_run

SMALL = ("prompts.limit=16", "batch.micro=1")
ROWS = [[1.0] * 9]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command(module, *words)` runs a benchmark's `main` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        module.main()

    return command


@pytest.fixture
def replaced(monkeypatch):
    """`replaced(module, name=function)` replaces functions; calls must fit the real signature."""

    def replaced(module, **functions):
        for name, function in functions.items():
            made = create_autospec(getattr(module, name), side_effect=function)
            monkeypatch.setattr(module, name, made)

    return replaced


def once(calls, *, repeats, device):
    """Run every function once and return equal times."""
    for call in calls.values():
        call(0)
    return dict.fromkeys(calls, stopwatch.Clock(1.0, 1.0, 1.0))


def overrides(folder):
    cache = f"prompts.cache={folder / 'cache'}"
    return [word for change in (*SMALL, cache) for word in ("--set", change)]


def built_once(key):
    """A `build_run` that builds one run for all configs with the same key."""
    made = {}

    def build(config, world):
        if key(config) not in made:
            made[key(config)] = build_run(config, world)
        return made[key(config)]

    return build


@pytest.mark.slow
def test_quantized_bases_are_compared_and_distilled(command, replaced, monkeypatch, tmp_path):
    monkeypatch.setattr(quantized, "KINDS", ("none", "int8"))
    monkeypatch.setattr(race, "Distance", lambda run, captions, each: lambda run: 1.0)
    plan = SimpleNamespace(weights=SimpleNamespace(base_bytes=2**20))
    replaced(
        quantized,
        alternate=once,
        make_plan=lambda config: plan,
        build_run=built_once(lambda config: config.model.quantize),
    )
    command(quantized, "--iterations", 1, "--json", "q.json", *overrides(tmp_path))
    costs, students = json.loads(Path("q.json").read_text()).values()
    assert [row["base"] for row in costs["rows"]] == ["none", "int8"]
    assert [row["on the whole base"] for row in students["rows"]] == ["1.000", "1.000"]


@pytest.mark.slow
def test_a_race_of_shapes_goes_on_with_the_same_settings_only(
    command, replaced, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(
        race, "Distance", lambda *_: type("D", (), {"z": [0], "__call__": lambda self, run: 1.0})()
    )
    replaced(race, alternate=once, build_run=built_once(lambda c: repr((c.objective, c.steps))))
    words = ("shapes", "--seconds", 0.1, "--seeds", 1, "--results", "r.json")
    patterns = ("--patterns", "stop", "stream, joint")
    command(race, *words, *patterns, *overrides(tmp_path))
    assert "| stream, joint | 1 | 1.000 |" in capsys.readouterr().out
    command(race, *words, "--patterns", "stop", *overrides(tmp_path))
    assert "seed 0" not in capsys.readouterr().out  # nothing is measured again
    with refused("'full'", "r.json", "--results"):
        command(race, *words, "--patterns", "full", *overrides(tmp_path))
    with refused("--set", "r.json", "--results"):
        command(race, *words, *patterns)


def test_a_race_on_the_mixture_has_a_row_for_each_pattern(command, replaced, capsys):
    replaced(
        mixture := race.mixture,
        pretrained=lambda process, recipe: mixture.VelocityNetwork(process, width=8),
        distil=lambda process, recipe, *, start, iteration: start,
        score=lambda *_, **__: 0.5,
    )
    replaced(race, alternate=once)
    command(race, "toy", "--seconds", 0.1, "--seeds", 2)
    out = capsys.readouterr().out
    names = [name for name, pattern in race.PATTERNS.items() if pattern.micros == 1]
    assert all(f"| {name} | 4 | 0.500, 0.500 |" in out for name in names)


def test_the_toy_prints_a_row_for_each_process(command, replaced, capsys):
    half = {"score": lambda *_, **__: 0.5, "floor": lambda: 0.5}
    replaced(toy, distil=lambda process, recipe: None, **half)
    command(toy, "--seeds", 1)
    out = capsys.readouterr().out
    assert all(f"| {name}: TDM, 4 steps, 2000 iterations" in out for name in toy.PROCESSES)


def test_an_iteration_and_a_sampler_are_reported(command, replaced, monkeypatch, tiny_json):
    monkeypatch.setitem(iteration.NETWORKS, "shapes", (str(tiny_json), [], None))
    replaced(iteration, compare=lambda *_: ROWS)
    replaced(sampling, compare=lambda *_, **__: ROWS)
    command(iteration, "--networks", "shapes", "--json", "i.json", "--set", "batch.micro=2")
    command(sampling, "--json", "s.json", "--steps", 10)
    for file, title in (("i.json", "float32, batch 2, LoRA rank 2"), ("s.json", "against 10")):
        (found,) = json.loads(Path(file).read_text()).items()
        assert title in found[0] and len(found[1]["rows"]) == 1


@pytest.mark.slow
def test_scaling_compares_measurements_with_plans(command, replaced, monkeypatch, tiny_run):
    keys = ("flops", "kept", "peak", "seconds", "tokens", "weights", "trained")
    measured = dict.fromkeys(keys, 1.0)
    monkeypatch.setattr(scaling, "POINTS", scaling.POINTS[:1])
    replaced(
        scaling,
        prepare=lambda changes, work: tiny_run("run"),
        measure=lambda *_: measured,
        launched=lambda *_: measured,
    )
    command(scaling, "--json", "s.json")
    (found,) = json.loads(Path("s.json").read_text()).values()
    assert [row["run"] for row in found["rows"]][1:] == [
        "2 ranks share the tokens",
        "2 ranks share the weights, checkpointing",
    ]


@pytest.mark.slow
def test_a_large_model_s_iteration_is_printed_with_its_plan(command, replaced, tiny_json, capsys):
    replaced(large, matrix_rate=lambda *_: 1e12)
    command(large, "--config", tiny_json, "--layers", 1, "--iterations", 1)
    *_, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["layers"] == 1 and len(json.loads(line)["seconds"]) == 1


def test_compiled_blocks_are_compared_with_eager_ones(command, replaced, tiny_json, capsys):
    found = [("eager", compiled.Moved(4 * 10**9, 8)), ("compiled", compiled.Moved(10**9, 2))]
    replaced(compiled, measure=lambda _: found)
    command(compiled, "--config", tiny_json, tiny_json)
    assert capsys.readouterr().out.count("| compiled | 1.00 | 2 | 25% |") == 2


def test_jobs_of_a_gpu_without_time_are_stored(command, replaced):
    replaced(gpu, rows_of=lambda name, *_: iter([{"row": name, "seconds": 1.0}]))
    command(gpu, "--jobs", "machine", "2b", "--json", "gpu.json")
    assert [row["row"] for row in json.loads(Path("gpu.json").read_text())["rows"]] == [
        "machine",
        "2b",
    ]
    command(gpu, "--jobs", "machine", "--json", "gpu.json", "--seconds", 1)
    (row,) = json.loads(Path("gpu.json").read_text())["rows"]
    assert row["error"] == "no time left"


@pytest.mark.slow
def test_a_guarded_run_is_trained_and_judged(command, replaced, monkeypatch, capsys):
    real = guard.load_config
    short = (
        *("prompts.limit=4", "log.teacher_steps=2", "batch.micro=1"),
        'log.sample_prompts=["a red ring moving left", "a cyan cross moving down"]',
    )
    monkeypatch.setattr(guard, "load_config", lambda name, more=(): real(name, [*more, *short]))
    recipe = guard.Recipe(iterations=1, against=True)
    monkeypatch.setattr(guard, "RECIPES", {"wrong sign": recipe})
    monkeypatch.setattr(guard, "EVERY", 1)
    replaced(guard, build_run=built_once(lambda config: 0))
    with refused("--show", "guard"):
        command(guard, "--results", "guard.json", "--show")
    command(guard, "--results", "guard.json")
    assert "| wrong sign | 1 |" in capsys.readouterr().out
    assert Path("guard.svg").read_text().count("<path") > 1
    command(guard, "--results", "guard.json", "--cost")
    assert json.loads(capsys.readouterr().out)["share of the training"] > 0


@pytest.mark.parametrize(
    "name, words, facts",
    [
        ("race", ("toy", "--seeds", "0"), ("--seeds=0",)),
        ("race", ("toy", "--set", "seed=1"), ("--set seed=1", "toy")),
        ("iteration", ("--repeats", "0"), ("--repeats=0",)),
        ("iteration", ("--layers", "2"), ("--layers=2", "'shapes'")),
        ("sampling", ("--batch", "1", "0"), ("--batch=[1, 0]",)),
        ("scaling", ("--sequence", "0"), ("--sequence=0",)),
        ("quantized", ("--iterations", "-1"), ("--iterations=-1",)),
        ("large", ("--config", "x", "--iterations", "0"), ("--iterations=0",)),
        ("gpu", ("--seconds", "-1"), ("--seconds=-1.0", "1,000,000 seconds")),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_measured(command, name, words, facts):
    with refused(*facts):
        command(importlib.import_module(f"benchmarks.{name}"), *words)


def test_blocks_that_a_network_does_not_count_are_refused(tmp_path):
    config = iteration.load_config("sd15_4nfe")
    with refused("--layers=2", "StableDiffusionPipeline", "num_layers"):
        untrained.untrained(config, tmp_path, num_layers=2)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_of_results_that_is_none_is_refused_by_name(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with refused(path):
        race.Results(path)
    with refused(path):
        stopwatch.report("title", ["a"], [[1]], device=torch.device("cpu"), path=path)
