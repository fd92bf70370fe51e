"""Cluster failures end in bounded time with their cause named, and the run resumes with the same
numbers.
"""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launched import DIE_IN_THE_SECOND_SAVE, ROOT, ranks
from refusals import refused, states

from tdmvid.data.checkpoints import META, checksum, read_meta, write_meta
from tdmvid.train.monitor import read_metrics
from tdmvid.train.trainer import train

OTHER_CONFIG = """
import os, runpy, sys
sys.argv = sys.argv[1:] + (["--set", "student.lr=0.5"] if os.environ["RANK"] == "1" else [])
runpy.run_path("launch/train.py", run_name="__main__")
"""
SEES_NO_CHECKPOINT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
from tdmvid.train.checkpoint import Checkpoints
latest = Checkpoints.latest
Checkpoints.latest = lambda self: None if os.environ["RANK"] == "1" else latest(self)
runpy.run_path("launch/train.py", run_name="__main__")
"""
HANG = """
import os, runpy, sys, time
sys.argv = sys.argv[1:]
from tdmvid.train import trainer
iterate = trainer.iterate
def hang_here(step, *args, **options):
    if os.environ["RANK"] == "1" and step == 3:
        time.sleep(1000)
    return iterate(step, *args, **options)
trainer.iterate = hang_here
runpy.run_path("launch/train.py", run_name="__main__")
"""


def losses(out: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss/student"], row["loss/fake"]) for row in rows]


@pytest.fixture(scope="module")
def whole(tiny_json, tmp_path_factory):
    """Losses of two ranks without any failure."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, said = ranks(tiny_json, out)
    assert status == 0, said
    return losses(out)


@pytest.mark.slow
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(tiny_json, tmp_path, whole):
    out = tmp_path / "run"
    status, said = ranks(tiny_json, out, script=DIE_IN_THE_SECOND_SAVE, folder=tmp_path)
    assert status != 0 and "SIGKILL" in said
    assert [path.name for path in (out / "checkpoints").glob("step_*")] == ["step_000002"]
    status, said = ranks(tiny_json, out)
    assert status == 0 and losses(out) == whole, said


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_and_every_rank_says_where_it_stood(
    tiny_json, tmp_path, whole
):
    out = tmp_path / "run"
    status, said = ranks(
        tiny_json, out, "parallel.timeout_minutes=0.4", script=HANG, folder=tmp_path
    )
    assert status != 0 and f"stack trace of every rank in {out / 'stuck'}" in said
    stood = [(out / "stuck" / f"rank_000{rank}.txt").read_text() for rank in (0, 1)]
    assert "hang_here" in stood[1] and "in iterate" in stood[0] and "sleep" not in stood[0]
    assert [path.name for path in (out / "checkpoints").glob("step_*")] == ["step_000002"]
    status, said = ranks(tiny_json, out)
    assert status == 0 and losses(out) == whole, said


@pytest.mark.slow
def test_a_rank_with_another_config_is_named(tiny_json, tmp_path):
    status, said = ranks(tiny_json, tmp_path / "run", script=OTHER_CONFIG, folder=tmp_path)
    assert (
        status != 0
        and "rank 1 was given another config than rank 0: student.lr=0.5, not 0.01" in said
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_that_is_shown_an_older_folder_resumes_with_the_others(tiny_json, tmp_path, whole):
    """A shared file system may show one machine an outdated folder."""
    out = tmp_path / "run"
    ranks(tiny_json, out, "steps=4")
    status, said = ranks(tiny_json, out, script=SEES_NO_CHECKPOINT, folder=tmp_path)
    assert status == 0 and losses(out) == whole, said


@pytest.mark.slow
def test_a_truncated_shard_is_named_and_the_checkpoint_before_it_taken(tiny_json, tmp_path, whole):
    out = tmp_path / "run"
    ranks(tiny_json, out, "log.checkpoint_every=2", "log.keep_checkpoints=4", "steps=6")
    shard = next((out / "checkpoints" / "step_000006" / "student" / "zero").glob("*rank_1*optim*"))
    os.truncate(shard, shard.stat().st_size // 2)
    status, said = ranks(tiny_json, out)
    assert status == 0 and "step_000006: student/zero/" in said and " bytes instead of " in said
    assert losses(out) == whole


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(tiny_run, tmp_path, loop_only):
    train(tiny_run(tmp_path / "run", "steps=2"))
    weights = tmp_path / "run" / "checkpoints" / "step_000002" / "fake" / "weights.safetensors"
    os.truncate(weights, 100)
    with refused("step_000002", "fake/weights.safetensors", "100"):
        train(tiny_run(tmp_path / "run", "steps=4"), resume=str(weights.parents[1]))


@pytest.mark.parametrize("name", [META, "fake/optimizer.pt"])
def test_one_flipped_bit_is_found_by_every_resume(tiny_run, tmp_path, loop_only, capsys, name):
    whole = train(tiny_run(tmp_path / "whole", "steps=6"))
    out = train(tiny_run(tmp_path / "run", "steps=4", "log.checkpoint_every=2"))
    path = out / "checkpoints" / "step_000004"
    data = bytearray((path / name).read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    (path / name).write_bytes(data)
    with refused(path, name):
        train(tiny_run(out, "steps=6"), resume=str(path))
    capsys.readouterr()
    train(tiny_run(out, "steps=6"), resume="auto")
    (passed_over,) = [line for line in capsys.readouterr().err.splitlines() if states(line, path)]
    assert states(passed_over, name)
    assert losses(out) == losses(whole)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(
    tiny_run, tmp_path, loop_only
):
    out = train(tiny_run(tmp_path / "run", "steps=2"))
    (out / "checkpoints" / "step_000002" / "fake" / "optimizer.pt").unlink()
    with refused(out / "checkpoints", "--out"):
        train(tiny_run(out, "steps=4"), resume="auto")
    assert len(losses(out)) == 2


def test_a_file_that_holds_something_else_is_named(tiny_run, tmp_path, loop_only):
    """Its checksum is correct, because it was written that way."""
    out = train(tiny_run(tmp_path / "run", "steps=2"))
    path = out / "checkpoints" / "step_000002"
    for name in ("fake/optimizer.pt", "fake/weights.safetensors"):
        before, meta = (path / name).read_bytes(), read_meta(path)
        (path / name).write_bytes(b"something else")
        write_meta(path, meta | {"files": meta["files"] | {name: checksum(b"something else")}})
        with refused(path / name):
            train(tiny_run(out, "steps=4"), resume=str(path))
        (path / name).write_bytes(before)
        write_meta(path, meta)


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_checkpoint_before_stands(
    tiny_json, tiny_run, tmp_path, loop_only
):
    """A limit on file size simulates a full disk: the file that exceeds it cannot be written
    completely.
    """
    train(tiny_run(tmp_path / "whole"))
    out = tmp_path / "run"
    train(tiny_run(out, "steps=2"))
    command = [
        sys.executable,
        "launch/train.py",
        "--config",
        str(tiny_json),
        "--out",
        str(out),
        "--resume",
        "auto",
    ]

    def limit():
        return resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )
    assert (
        done.returncode == 1
        and "could not be written (" in done.stderr
        and states(done.stderr, "--resume auto")
        and states(done.stderr, f"--resume {out / 'checkpoints' / 'step_000002'}")
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in (out / "checkpoints").glob("step_*")] == ["step_000002"]
    train(tiny_run(out), resume="auto")
    assert losses(out) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_trajectories_go_on_with_another_number_of_ranks(tiny_json, tiny_run, tmp_path, loop_only):
    """Two ranks, then one with two micro-batches, then two again. The numbers differ only by
    rounding, like those of one process without a launcher.
    """
    out, stream = tmp_path / "run", "objective.rollout=stream"
    for count, accumulation, steps in ((2, 1, 2), (1, 2, 4), (2, 1, 6)):
        changes = (stream, f"steps={steps}", f"batch.accumulation={accumulation}")
        status, said = ranks(tiny_json, out, *changes, count=count)
        assert status == 0, said
    whole = train(tiny_run(tmp_path / "whole", stream, "steps=6", "batch.accumulation=2"))
    assert losses(out) == [pytest.approx(pair, rel=1e-4, abs=0) for pair in losses(whole)]


@pytest.mark.slow
def test_trajectories_on_sharded_weights_and_videos_resume_to_the_digit(tiny_json, tmp_path):
    """Of the ranks that share a video, only one writes its state."""
    out, changes = tmp_path / "run", ("objective.rollout=stream", "parallel.sequence=2", "steps=6")
    status, said = ranks(tiny_json, out, *changes)
    assert status == 0, said
    whole, clock = losses(out), read_metrics(out / "metrics.jsonl")["seconds"]
    steps = out / "checkpoints"
    assert [file.name for file in (steps / "step_000006").glob("trajectories_*")] == [
        "trajectories_00000.safetensors"
    ]
    shutil.rmtree(steps / "step_000006")
    status, said = ranks(tiny_json, out, *changes)
    assert status == 0 and losses(out) == whole, said
    again = read_metrics(out / "metrics.jsonl")["seconds"]
    assert again[:4] == clock[:4] and again[4:] != clock[4:]  # only the last two were made again
