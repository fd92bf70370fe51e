"""A run with its guard: what is logged, reported, stored and exported."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from refusals import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tdmvid.data.checkpoints import checksum, write_meta
from tdmvid.diffusion.grid import uniform
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published, export_run
from tdmvid.guard.bands import BANDS, Verdict
from tdmvid.guard.record import GuardRecord
from tdmvid.parallel import launch
from tdmvid.sampling.sample import find_untrained
from tdmvid.sampling.student import load_for_sampling, use_student
from tdmvid.train import guard as guarding
from tdmvid.train import trainer
from tdmvid.train.checkpoint import Checkpoints
from tdmvid.train.monitor import read_metrics
from tdmvid.train.samples import Samples
from tdmvid.train.state import best_step
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
    told = capsys.readouterr().err
    assert "warning: guard, 1 iterations" in told
    assert "in a new run" in told, "a resume refuses other settings"


def test_a_slow_fake_is_told_before_the_first_iteration(tiny_run, tmp_path, capsys):
    """On the terminal, in TensorBoard, and in the report."""
    out, slow = tmp_path / "run", ("fake.lr=1e-5", "student.lr=1e-2")
    train(tiny_run(out, "steps=1", *slow))
    told = capsys.readouterr().err
    assert told.count("warning: guard, settings: ") == 1 == told.count("fake.lr=1e-05")
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert board.Tags()["tensors"]
    page = (out / "report.html").read_text()
    assert "not healthy" in page and "guard.fake_rate" in page
    assert kept(out)["checks"][0]["findings"][0]["measure"] == "fake_rate"


def test_wrong_settings_stop_a_run_that_is_to_stop(tiny_run, tmp_path):
    out = tmp_path / "run"
    with refused("guard.action='stop'", "prompt_uses", error=TrainingStopped):
        train(tiny_run(out, *OFTEN, "guard.action=stop", "guard.prompt_uses=0.1"))
    assert not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text()


def test_a_run_whose_loss_is_not_finite_says_so_in_the_report(tiny_run, tmp_path, monkeypatch):
    out, iteration = tmp_path / "run", trainer._iteration

    def overflow(run, step):
        outcome, scalars = iteration(run, step)
        return replace(outcome, failed="student"), scalars

    monkeypatch.setattr(trainer, "_iteration", overflow)
    with refused("student", error=TrainingStopped):
        train(tiny_run(out, "steps=3", "max_bad_steps=1"))
    page = (out / "report.html").read_text()
    assert "not healthy" in page and "loss or gradient is not finite" in page


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
    assert "The guard found problems" in card


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path, capsys):
    folder, record = tmp_path / "checkpoints", GuardRecord()
    for step, contrast in ((1, 1.01), (2, 1.1), (3, 1.5)):
        verdict = Verdict({}, contrast - 1, ())
        record = record.with_check(step, {}, verdict)
        path = folder / f"step_{step:06d}"
        (path / "student").mkdir(parents=True)
        (path / "student" / "a").write_bytes(b"weights")
        files = {"student/a": checksum(b"weights")}
        write_meta(path, {"step": step, "fingerprint": {}, "files": files})
    checkpoints = Checkpoints(folder, keep=3, rank=0, ranks=1)
    assert best_step(checkpoints, record, 3) == 1
    (folder / "step_000001" / "student" / "a").write_bytes(b"Weights")
    assert best_step(checkpoints, record, 3) == 2
    assert "step_000001" in capsys.readouterr().err


def test_every_rank_makes_the_reference_once(tiny_run, tmp_path, monkeypatch):
    """A rank that made the reference again at the next check would wait for the others forever."""
    made = []
    monkeypatch.setattr(guarding.Guard, "_make_reference", lambda guard: made.append(guard))
    world, order = SimpleNamespace(primary=False, data_size=2), SimpleNamespace(count=2)
    run = SimpleNamespace(config=tiny_run(tmp_path), world=world, order=order)
    guard = guarding.Guard(run, 0)
    for step in (1, 2):
        guard.check(step, Samples(torch.zeros(1), None))
    assert len(made) == 1


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def base(broken):
    """The base of the student of the broken run."""
    return load_for_sampling(launch.start("none"), student=broken / "lora")


@pytest.mark.parametrize(
    "name, changes, facts",
    [
        ("scheduler_config.json", {"timestep_spacing": "leading"}, ("timesteps",)),
        ("scheduler_config.json", {"prediction_type": "epsilon"}, ("prediction type",)),
        ("scheduler_config.json", {"beta_end": 0.05}, ("noise levels",)),
        ("scheduler_config.json", {"_class_name": "DDIMScheduler"}, ("DDIMScheduler",)),
        ("export.json", {"timesteps": [999, 700, 400, 100]}, ("scheduler_config.json", "700")),
        ("export.json", {"steps": 8}, ("steps=8", "timesteps")),
    ],
)
def test_changed_files_of_a_published_lora_are_refused(
    broken, base, tmp_path, name, changes, facts
):
    folder = tmp_path / "lora"
    shutil.copytree(broken / "lora", folder)
    use_student(base, folder)
    edited(folder / name, **changes)
    with refused(folder / name if name == "scheduler_config.json" else "export.json", *facts):
        use_student(base, folder)
    if "_class_name" not in changes:  # load_pipeline uses the class that export.json names
        with refused(*facts):
            load_pipeline(folder)


def test_a_card_that_lists_another_grid_is_refused(broken, base, tmp_path):
    folder = tmp_path / "lora"
    shutil.copytree(broken / "lora", folder)
    card = folder / "README.md"
    listed = json.loads((folder / "export.json").read_text())["timesteps"]
    assert f"| timesteps | {listed}" in card.read_text()
    card.write_text(card.read_text().replace(f"| timesteps | {listed}", "| timesteps | [999, 10]"))
    with refused(card, "999, 10"):
        use_student(base, folder)


def test_other_steps_than_the_trained_ones_are_named(broken, base, tmp_path):
    notes = find_untrained(base, broken / "lora", steps=8, cfg=1.0)
    assert len(notes) == 1 and "8" in notes[0]


def test_a_published_lora_is_not_exported_with_another_grid(broken, base, tmp_path):
    """The file of a student of ours lies beside its export.json."""
    grid, (file,) = uniform(3, base.process), (broken / "lora").glob("*.safetensors")
    with refused("timesteps=", "export.json"):
        export_published(tmp_path / "out", file, base, grid, ExportRequest())


@pytest.mark.parametrize("grid", [{"start": 0.9}, {"steps": 2}, {"kind": "shifted", "shift": 3.0}])
def test_a_grid_that_was_not_trained_is_refused_by_export(broken, tmp_path, grid):
    run = tmp_path / "run"
    shutil.copytree(broken, run)
    config = json.loads((run / "config.json").read_text())
    edited(run / "config.json", grid=config["grid"] | grid)
    name = next(iter(grid))
    with refused(f"grid.{name}=", str(config["grid"][name])):
        export_run(tmp_path / "out", run)
