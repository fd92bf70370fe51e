"""A run with its guard: what is logged, reported, stored and exported."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tdmvid.export.sources import export_run
from tdmvid.guard.bands import BANDS
from tdmvid.parallel import launch
from tdmvid.sampling.student import load_for_sampling, use_student
from tdmvid.train import guard as guarding
from tdmvid.train.monitor import read_metrics
from tdmvid.train.samples import Samples
from tdmvid.train.trainer import TrainingStopped, train

OFTEN = ("steps=2", "log.sample_every=1", "guard.patience=0")


def narrow(monkeypatch):
    """Make the bands so narrow that no student is healthy."""
    monkeypatch.setitem(BANDS, "latents", replace(BANDS["latents"], high=1e-6))


@pytest.mark.parametrize(
    "changes, setting",
    [
        (("guard.action=stop",), "guard.action"),
        (("export.select=best",), "export.select"),
        (("export.select=best", "guard.action=off", "log.sample_every=1"), "export.select"),
    ],
)
def test_settings_without_effect_are_refused(tiny_run, tmp_path, changes, setting):
    with refused(setting):
        tiny_run(tmp_path, *changes)


def test_a_run_that_is_to_stop_stops_and_leaves_a_report(tiny_run, tmp_path, monkeypatch, capsys):
    """Its state is not saved, because a checkpoint of noise would displace earlier ones."""
    out = tmp_path / "run"
    narrow(monkeypatch)
    with refused("guard.action='stop'", error=TrainingStopped):
        train(tiny_run(out, *OFTEN, "guard.action=stop"))
    assert not (out / "checkpoints").exists() or not any((out / "checkpoints").iterdir())
    assert "not healthy" in (out / "report.html").read_text()
    assert "warning: guard, 1 iterations" in capsys.readouterr().err


def test_a_run_without_a_guard_compares_nothing(tiny_run, tmp_path):
    out = tmp_path / "run"
    train(tiny_run(out, "steps=1", "guard.action=off"))
    assert not (out / "guard.json").exists() and not (out / "guard").exists()


def test_a_resumed_run_keeps_its_reference_and_forgets_what_came_later(
    tiny_run, tmp_path, monkeypatch
):
    out, calm = tmp_path / "run", ("student.lr=1e-4", "fake.lr=1e-4", "log.sample_every=1")
    train(tiny_run(out, "steps=2", *calm))
    first = kept(out)
    monkeypatch.setattr(guarding, "ddim", None)  # would be called to sample the teacher
    train(tiny_run(out, "steps=3", *calm), resume="auto")
    again = kept(out)
    assert again["checks"][:2] == first["checks"] and len(again["checks"]) == 3


def kept(out):
    return json.loads((out / "guard.json").read_text())


@pytest.fixture(scope="module")
def broken(tiny_run, tmp_path_factory):
    """A run whose students are all outside a band."""
    out = tmp_path_factory.mktemp("broken") / "run"
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        train(tiny_run(out, *OFTEN, "export.select=best"))
    return out


def test_measures_are_logged_where_samples_are_made(broken):
    metrics = read_metrics(broken / "metrics.jsonl")
    record = kept(broken)
    assert [check["step"] for check in record["checks"]] == [1, 2]
    measured = {name.removeprefix("guard/") for name in metrics if name.startswith("guard/")}
    assert set(BANDS) - {"prompts"} | {"distance", "seconds"} == measured  # it samples one prompt
    assert metrics["guard/motion"] == [check["relative"]["motion"] for check in record["checks"]]


def test_a_broken_run_says_so_in_tensorboard_and_in_the_report(broken):
    board = EventAccumulator(str(broken / "tensorboard"))
    board.Reload()
    findings = [finding for check in kept(broken)["checks"] for finding in check["findings"]]
    assert findings and board.Tags()["tensors"]
    page = (broken / "report.html").read_text()
    assert "not healthy" in page and 'class="calls"' not in page
    assert "not scored yet" in page


def test_the_best_student_is_kept_and_exported(broken):
    record = kept(broken)
    best = min(record["checks"], key=lambda one: (bool(one["findings"]), one["distance"]))["step"]
    assert record["exported"] == best
    assert (broken / "checkpoints" / f"step_{best:06d}").is_dir()
    card = (broken / "lora" / "README.md").read_text()
    assert ("1 of 2 iterations" in card) == (best == 1)
    assert "not healthy" in card


def test_every_rank_makes_the_reference_once(tiny_run, tmp_path, monkeypatch):
    """A rank that made the reference again at the next check would wait for the others forever."""
    made = []
    monkeypatch.setattr(guarding.Guard, "_make_reference", lambda guard: made.append(guard))
    run = SimpleNamespace(config=tiny_run(tmp_path), world=SimpleNamespace(primary=False))
    guard = guarding.Guard(run, 0)
    for step in (1, 2):
        guard.check(step, Samples(torch.zeros(1), None))
    assert len(made) == 1


def test_a_scheduler_of_other_times_is_refused_by_sampling(broken, tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(broken / "lora", folder)
    scheduler = folder / "scheduler_config.json"
    backbone = load_for_sampling(launch.start("none"), student=folder)
    use_student(backbone, folder)
    scheduler.write_text(scheduler.read_text().replace('"trailing"', '"leading"'))
    with refused("scheduler_config.json", "timesteps"):
        use_student(backbone, folder)


def test_a_grid_that_was_not_trained_is_refused_by_export(broken, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(broken, run)
    config = json.loads((run / "config.json").read_text())
    config["grid"]["start"] = 0.9
    (run / "config.json").write_text(json.dumps(config))
    with refused("grid.start=0.9", "1.0"):
        export_run(tmp_path / "out", run)
