"""The record of a run survives kills and resumes."""

import json
import math

import pytest
from refusals import refused, states
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tdmvid.train.monitor import METRICS, Monitor, read_metrics


def scalars(step):
    return {"loss/fake": 1 / (step + 1), "loss/student": math.sin(step), "seconds": 0.1 + step}


def run(out, start, stop, total=10):
    monitor = Monitor(out, total=total, start=start)
    for step in range(start, stop):
        monitor.log(step, scalars(step))
    monitor.close()


def test_a_resumed_run_leaves_the_record_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "resumed", 0, 7)  # dies at 7, its last checkpoint is from 4
    run(tmp_path / "resumed", 4, 10)
    whole, resumed = ((tmp_path / name / METRICS).read_bytes() for name in ("whole", "resumed"))
    assert resumed == whole and whole.count(b"\n") == 10


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_torn_last_line_is_dropped_on_resume(tmp_path, cut):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "torn", 0, 6)
    path = tmp_path / "torn" / METRICS
    path.write_bytes(path.read_bytes()[:-cut])
    run(tmp_path / "torn", 5, 10)
    assert path.read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_a_line_that_lacks_only_its_newline_is_kept_whole(tmp_path):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "torn", 0, 6)
    path = tmp_path / "torn" / METRICS
    path.write_bytes(path.read_bytes()[:-1])
    run(tmp_path / "torn", 6, 10)
    assert path.read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()


def test_starting_at_zero_starts_a_new_record(tmp_path):
    run(tmp_path, 0, 10)
    run(tmp_path, 0, 2)
    assert read_metrics(tmp_path / METRICS)["step"] == [0, 1]


def test_columns_are_aligned_with_the_steps_and_the_torn_line_is_left_out(tmp_path):
    path = tmp_path / METRICS
    path.write_text(
        '{"step": 3, "a": 1.5}\n{"step": 4, "a": 2.5, "b": NaN}\n{"step": 5, "b": 7.0}\n{"step": 6,'
        ' "a": 1'
    )
    metrics = read_metrics(path)
    assert metrics["step"] == [3, 4, 5]
    assert metrics["a"][:2] == [1.5, 2.5] and math.isnan(metrics["a"][2])
    assert metrics["b"][2] == 7.0 and all(map(math.isnan, metrics["b"][:2]))


def test_an_empty_record_has_no_steps(tmp_path):
    (tmp_path / METRICS).write_text("")
    assert read_metrics(tmp_path / METRICS) == {"step": []}


def test_a_bad_line_in_the_middle_is_refused_with_its_number(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with refused("metrics.jsonl:2"):
        read_metrics(tmp_path / METRICS)


def lose(path):
    path.unlink()


def empty(path):
    path.write_text("")


def damage(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"{", 1)] ^= 2
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [lose, empty, damage])
def test_a_record_that_was_lost_or_damaged_is_restored_from_its_copy(tmp_path, capsys, harm):
    run(tmp_path / "whole", 0, 10)
    run(tmp_path / "saved", 0, 5)
    run(tmp_path / "run", 0, 7)
    harm(tmp_path / "run" / METRICS)
    capsys.readouterr()
    monitor = Monitor(tmp_path / "run", total=10, start=5, saved=tmp_path / "saved")
    assert states(capsys.readouterr().err, METRICS) is False, "nothing is missing"
    for step in range(5, 10):
        monitor.log(step, scalars(step))
    monitor.close()
    whole, restored = (tmp_path / name / METRICS for name in ("whole", "run"))
    assert restored.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "harm, missing, left", [(lose, 5, []), (empty, 5, []), (damage, 1, [0, 2, 3, 4])]
)
def test_steps_that_no_record_has_are_counted(tmp_path, capsys, harm, missing, left):
    run(tmp_path, 0, 7)
    harm(tmp_path / METRICS)
    run(tmp_path, 5, 6)
    said = capsys.readouterr().err
    assert states(said, tmp_path / METRICS) and states(said, f"{missing} of the 5 steps")
    assert read_metrics(tmp_path / METRICS)["step"] == [*left, 5]


@pytest.mark.parametrize("line", ["[]", "3", '{"loss": 1}', '{"step": "x"}', "\x00"])
def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path, line):
    (tmp_path / METRICS).write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with refused("metrics.jsonl:2"):
        read_metrics(tmp_path / METRICS)


def test_a_step_is_on_disk_before_the_next_one(tmp_path):
    monitor = Monitor(tmp_path, total=5)
    monitor.log(0, {"loss/fake": 0.25})
    assert json.loads((tmp_path / METRICS).read_text()) == {"step": 0, "loss/fake": 0.25}
    monitor.close()


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    run(tmp_path, 0, 7)
    run(tmp_path, 4, 10)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    events = board.Scalars("loss/student")
    assert [event.step for event in events] == list(range(10))
    assert [event.value for event in events] == pytest.approx(
        [math.sin(step) for step in range(10)]
    )


def test_other_ranks_are_silent(tmp_path, capfd):
    monitor = Monitor(tmp_path / "out", total=3, primary=False)
    monitor.log(0, scalars(0))
    monitor.close()
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")
