"""An interrupted, killed or continued run is bit-identical to an uninterrupted run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from tdmvid.cli.main import main
from tdmvid.data import folder_lock
from tdmvid.data.checkpoints import list_steps
from tdmvid.data.folder_lock import LOCK, FolderLock
from tdmvid.train import trainer
from tdmvid.train.checkpoint import UNCHECKED, Checkpoints
from tdmvid.train.monitor import Monitor
from tdmvid.train.samples import NotFinite
from tdmvid.train.signals import STOPPED
from tdmvid.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
# EMA, moments, warm-up and decay: a resume that misses one of them gives other numbers.
EVERYTHING = (
    "ema=0.5",
    "student.schedule=cosine",
    "student.warmup=2",
    "fake.betas=[0.5,0.999]",
    "objective.fake_updates=2",
)
DIE_WHILE_SAVING = """
import os, runpy, signal, sys
from tdmvid.train import checkpoint
write_files = checkpoint.write_files
def write_and_die(files):
    if "step_000004" in str(min(files)):
        write_files({min(files): files[min(files)]})
        os.kill(os.getpid(), signal.SIGKILL)
    write_files(files)
checkpoint.write_files = write_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def record(folder):
    """Return all rows of metrics.jsonl without the seconds."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows
    ]


def tensors(folder):
    """Return all weights and EMA weights under a folder."""
    return {
        f"{path.relative_to(folder)}/{name}": value
        for path in folder.rglob("*.safetensors")
        for name, value in load_file(path).items()
    }


def assert_same_state(a, b):
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys() and first
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def assert_same_run(resumed, whole):
    assert record(resumed) == record(whole)
    assert_same_state(
        resumed / "checkpoints" / "step_000008", whole / "checkpoints" / "step_000008"
    )
    assert_same_state(resumed / "lora", whole / "lora")


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The folder of an uninterrupted run of 8 steps."""
    return train(tiny_run(tmp_path_factory.mktemp("whole") / "run", *EVERYTHING))


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of that folder that a test may change."""
    return shutil.copytree(whole, tmp_path / "run")


def test_the_uninterrupted_run_learns(whole):
    rows, last = record(whole), tensors(whole / "lora")
    assert [row["step"] for row in rows] == list(range(8)) and len(
        {row["loss/fake"] for row in rows}
    ) == 8
    assert max(value.abs().max() for name, value in last.items() if "lora_B" in name) > 1e-2


def test_an_interrupted_run_resumes_digit_for_digit(tiny_run, whole, tmp_path, monkeypatch):
    log = Monitor.log

    def interrupted(monitor, step, scalars):
        log(monitor, step, scalars)
        if step == 5:
            raise KeyboardInterrupt

    config = tiny_run(tmp_path / "run", *EVERYTHING)
    monkeypatch.setattr(Monitor, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(Monitor, "log", log)
    assert len(record(tmp_path / "run")) == 6 and not (tmp_path / "run" / "lora").exists()
    train(config, resume="auto")
    assert_same_run(tmp_path / "run", whole)


def start(tiny_json, out, *, script=None):
    changes = [part for change in EVERYTHING for part in ("--set", change)]
    command = [
        sys.executable,
        *(["-c", script] if script else []),
        "launch/train.py",
        "--config",
        str(tiny_json),
        "--out",
        str(out),
        *changes,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_resumes_digit_for_digit(
    tiny_json, tiny_run, whole, tmp_path
):
    process, rows, metrics = (
        start(tiny_json, tmp_path / "run"),
        random.randint(1, 7),
        tmp_path / "run" / "metrics.jsonl",
    )
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") >= rows
    ):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train(tiny_run(tmp_path / "run", *EVERYTHING), resume="auto")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=["SIGINT", "SIGTERM", "SIGUSR1"]
)
def test_a_run_that_is_asked_to_stop_saves_says_so_and_resumes_digit_for_digit(
    tiny_json, tiny_run, whole, tmp_path, monkeypatch, number
):
    log = Monitor.log

    def asked_to_stop(monitor, step, scalars):
        log(monitor, step, scalars)
        if step == 2:
            signal.raise_signal(number)

    changes = [part for change in EVERYTHING for part in ("--set", change)]
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(Monitor, "log", asked_to_stop)
        main(["train", "--config", str(tiny_json), "--out", str(out), *changes])
    assert end.value.code == STOPPED == 75
    assert len(record(out)) == 3 == Checkpoints(out / "checkpoints", keep=2).steps()[-1]
    train(tiny_run(out, *EVERYTHING), resume="auto")
    assert_same_run(out, whole)


def test_an_error_while_sampling_loses_no_iteration(tiny_run, whole, tmp_path, monkeypatch):
    """The checkpoint of that iteration is there, and the resumed run makes the missing samples."""

    def out_of_memory(run, step):
        raise torch.OutOfMemoryError(f"after {step} iterations")

    out = tmp_path / "run"
    config, samples = tiny_run(out, *EVERYTHING), trainer.write_samples
    monkeypatch.setattr(trainer, "write_samples", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as error:
        train(config)
    done = int(str(error.value).split()[1])
    assert Checkpoints(out / "checkpoints", keep=2).steps()[-1] == done
    monkeypatch.setattr(trainer, "write_samples", samples)
    train(config, resume="auto")
    assert_same_run(out, whole)
    assert sorted(path.name for path in (out / "samples").iterdir()) == sorted(
        path.name for path in (whole / "samples").iterdir()
    )


def test_a_check_that_was_made_is_not_made_again(tiny_run, finished, monkeypatch):
    """Also if samples are deleted, or settings of samples and guard change."""
    shutil.rmtree(finished / "samples")
    monkeypatch.setattr(trainer, "write_samples", None)
    train(tiny_run(finished, *EVERYTHING, "log.sample_every=1", "guard.patience=1"), resume="auto")
    assert (finished / "checkpoints" / "step_000008").is_dir()


def test_a_run_killed_between_the_check_and_its_consequence_checks_again(
    tiny_run, tmp_path, monkeypatch
):
    """The bad state is deleted then, and the one before stands."""
    often = "log.sample_every=2", "log.checkpoint_every=2", "log.keep_checkpoints=2", "steps=4"
    train(tiny_run(tmp_path / "run", *often))
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step_000004" / UNCHECKED).touch()

    def diverged(run, step):
        raise NotFinite(f"after {step} iterations")

    monkeypatch.setattr(trainer, "write_samples", diverged)
    with pytest.raises(trainer.TrainingStopped, match="after 4"):
        train(tiny_run(tmp_path / "run", *often), resume="auto")
    assert [path.name for path in folder.iterdir()] == ["step_000002"]


def test_a_state_that_the_samples_prove_bad_replaces_no_checkpoint(tiny_run, tmp_path, monkeypatch):
    def diverged(run, step):
        if step > 2:
            raise NotFinite(f"after {step} iterations")
        return samples(run, step)

    samples = trainer.write_samples
    monkeypatch.setattr(trainer, "write_samples", diverged)
    often = "log.sample_every=2", "log.checkpoint_every=2", "log.keep_checkpoints=1"
    with pytest.raises(trainer.TrainingStopped, match="after 4"):
        train(tiny_run(tmp_path / "run", *often))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000002"]


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_saves_and_says_so(tiny_json, tmp_path):
    out = tmp_path / "run"
    process, metrics = start(tiny_json, out), out / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED
    assert 1 <= len(record(out)) == Checkpoints(out / "checkpoints", keep=2).steps()[-1] < 8


@pytest.mark.slow
def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(
    tiny_json, tiny_run, whole, tmp_path
):
    folder = tmp_path / "run" / "checkpoints"
    assert start(tiny_json, tmp_path / "run", script=DIE_WHILE_SAVING).wait() == -signal.SIGKILL
    assert sorted(path.name for path in folder.iterdir()) == [".step_000004.part", "step_000002"]
    assert [path.name for path in (folder / ".step_000004.part").rglob("*.*")] == ["optimizer.pt"]
    train(tiny_run(tmp_path / "run", *EVERYTHING), resume="auto")
    assert_same_run(tmp_path / "run", whole)
    assert sorted(path.name for path in folder.iterdir()) == ["step_000006", "step_000008"]


def test_a_finished_run_only_finishes_again(tiny_run, whole, finished):
    (finished / "report.html").unlink()
    train(tiny_run(finished, *EVERYTHING), resume="auto")
    assert (finished / "report.html").stat().st_size > 10_000
    assert (finished / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_run(finished, whole)


@pytest.mark.parametrize(
    "change, facts",
    [
        ("lora.rank=3", ("lora.rank=2", "3")),
        ("fake.lr=0.5", ("fake.lr=0.01", "0.5")),
        ("seed=7", ("seed=0", "7")),
        ("prompts.limit=5", ("prompts", "8 prompts", "5 prompts")),
        ("steps=9", ("steps=8", "9")),  # the cosine ends at the last step
    ],
    ids=str,
)
def test_another_run_s_checkpoint_is_refused_with_both_values(tiny_run, finished, change, facts):
    before = (finished / "config.json").read_bytes()
    with refused("step_000008", *facts):
        train(tiny_run(finished, *EVERYTHING, change), resume="auto")
    assert (finished / "config.json").read_bytes() == before and len(record(finished)) == 8


def test_who_wants_a_longer_run_is_told_how(tiny_run, finished):
    with refused("steps=8", "--set init=RUN/lora"):
        train(tiny_run(finished, *EVERYTHING, "steps=9"), resume="auto")


def test_what_does_not_touch_the_numbers_may_change(tiny_run, finished):
    train(
        tiny_run(finished, *EVERYTHING, "log.teacher_steps=3", "log.checkpoint_every=1"),
        resume="auto",
    )
    assert json.loads((finished / "config.json").read_text())["log"]["teacher_steps"] == 3


def test_a_folder_that_is_no_checkpoint_is_refused(tiny_run, tmp_path):
    with refused(tmp_path, "--resume auto"):
        train(tiny_run(tmp_path / "run"), resume=str(tmp_path))


def test_starting_afresh_over_checkpoints_is_refused(tiny_run, whole):
    with refused(whole, "--resume auto"):
        train(tiny_run(whole, *EVERYTHING))


def test_a_second_run_in_the_folder_is_refused_and_changes_nothing(tiny_run, finished, monkeypatch):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    first = FolderLock(finished)
    first.acquire()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    with refused(finished, os.getpid(), "--out"):
        train(tiny_run(finished, *EVERYTHING), resume="auto")
    first.release()
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert before.items() - after.items() == {(finished / LOCK, before[finished / LOCK])}, (
        "only the lock went"
    )


def test_a_run_that_is_refused_leaves_no_folder(tiny_run, tmp_path):
    with refused(tmp_path / "none"):
        train(tiny_run(tmp_path / "run"), resume=str(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_run_replaces_no_checkpoints(tiny_run, tmp_path, loop_only, capsys):
    one, other = (tmp_path / name for name in ("one", "other"))
    often = ("steps=3", "log.checkpoint_every=1", "log.keep_checkpoints=5")
    for folder in (one, other):
        train(tiny_run(folder, *often))
    first = one / "checkpoints" / "step_000001"
    with refused(f"--resume {first}", f"{other}", "another --out"):
        train(tiny_run(other, *often), resume=str(first))
    assert list_steps(other / "checkpoints") == [1, 2, 3]
    assert record(train(tiny_run(tmp_path / "new", *often), resume=str(first))) == record(one)
    assert "deleted" not in capsys.readouterr().err
    train(tiny_run(one, *often), resume=str(first))
    assert "deleted (step_000002, step_000003)" in capsys.readouterr().err


def test_a_resumed_run_has_its_whole_record_and_none_of_a_killed_one_s_parts(tiny_run, finished):
    *before, last = record(finished)
    (finished / "metrics.jsonl").write_text("")
    parts = ["checkpoints/.step_000010.part/a", "samples/.0f0f0f0f.part.png", ".0f0f0f0f.part"]
    for part in parts:
        (finished / part).parent.mkdir(parents=True, exist_ok=True)
        (finished / part).write_text("half")
    train(tiny_run(finished, *EVERYTHING), resume="auto")
    # The last checkpoint was written before the samples that its row of guard/... is about.
    known = {name: value for name, value in last.items() if not name.startswith("guard/")}
    assert record(finished) == [*before, known] and known != last
    assert [
        path for path in finished.rglob("*") if ".part" in str(path.relative_to(finished))
    ] == []


def test_a_run_with_constant_rates_may_be_made_longer_but_not_shorter_than_it_is(
    tiny_run, tmp_path, loop_only
):
    train(tiny_run(tmp_path / "long", "steps=4"))
    train(tiny_run(tmp_path / "grown", "steps=2"))
    train(tiny_run(tmp_path / "grown", "steps=4"), resume="auto")
    assert record(tmp_path / "grown") == record(tmp_path / "long")
    assert_same_state(
        tmp_path / "grown" / "checkpoints" / "step_000004",
        tmp_path / "long" / "checkpoints" / "step_000004",
    )
    with refused("step_000004", "steps=3"):
        train(tiny_run(tmp_path / "grown", "steps=3"), resume="auto")


def test_a_run_taken_back_to_an_older_checkpoint_forgets_the_newer_ones(
    tiny_run, tmp_path, loop_only, monkeypatch
):
    config = tiny_run(tmp_path, "steps=6", "log.keep_checkpoints=3")
    train(config)
    before, folder = record(tmp_path), tmp_path / "checkpoints"

    def stop(monitor, step, scalars):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitor, "log", stop)
        train(config, resume=str(folder / "step_000002"))
    assert [path.name for path in folder.iterdir()] == ["step_000002"] and record(
        tmp_path
    ) == before[:2]
    train(config, resume="auto")
    assert record(tmp_path) == before
