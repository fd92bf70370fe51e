"""A rank that hangs writes its stack trace, one that does not leaves no file, and Ctrl-C stops a
run.
"""

import signal
import time

import pytest

from tdmvid.parallel import launch
from tdmvid.train.signals import HangDetector, StopSignals


def hang_here() -> None:
    time.sleep(0.5)


def test_an_iteration_that_outlasts_the_limit_writes_down_where_it_stands(tmp_path, capsys):
    detector = HangDetector(tmp_path, launch.start("none"), timeout_minutes=1)
    detector.seconds = 0.1
    with detector:
        detector.start_iteration()
        hang_here()
    assert "hang_here" in (tmp_path / "stuck" / "rank_0000.txt").read_text()
    assert f"stack trace of every rank in {tmp_path / 'stuck'}" in capsys.readouterr().err


def test_a_run_that_moves_on_leaves_no_file(tmp_path):
    detector = HangDetector(tmp_path, launch.start("none"), timeout_minutes=1)
    detector.seconds = 60.0
    with detector:
        for _ in range(3):
            detector.start_iteration()
    assert list((tmp_path / "stuck").iterdir()) == []


def test_a_second_interrupt_stops_at_once_and_a_launcher_s_echo_does_not(monkeypatch, capfd):
    now = iter([0.0, 0.5, 1.5])
    monkeypatch.setattr("tdmvid.train.signals.time.monotonic", lambda: next(now))
    with pytest.raises(KeyboardInterrupt), StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (
            signals.requested()
            and capfd.readouterr().err.count("stopping after this iteration") == 1
        )
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_shell_has_turned_off_stays_off():
    """A script's background jobs ignore SIGINT, for example."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert not signals.requested()
    finally:
        signal.signal(signal.SIGINT, old)
