"""A rank that hangs says where, and one that does not leaves nothing behind; what Ctrl-C does."""

import signal
import time

import pytest

from tdmvid.parallel import launch
from tdmvid.train.signals import Watch


def hang_here() -> None:
    time.sleep(0.5)


def test_an_iteration_that_outlasts_the_limit_writes_down_where_it_stands(tmp_path, capsys):
    watch = Watch(tmp_path, launch.start("none"), timeout_minutes=1)
    watch.seconds = 0.1
    with watch:
        watch.beat(0)
        hang_here()
    assert "hang_here" in (tmp_path / "stuck" / "rank_0000.txt").read_text()
    assert f"{tmp_path / 'stuck'} says where every rank stood" in capsys.readouterr().err


def test_a_run_that_moves_on_leaves_no_file(tmp_path):
    watch = Watch(tmp_path, launch.start("none"), timeout_minutes=1)
    watch.seconds = 60.0
    with watch:
        for step in range(3):
            watch.beat(step)
    assert list((tmp_path / "stuck").iterdir()) == []


def test_a_second_interrupt_stops_at_once_and_a_launcher_s_echo_does_not(
    tmp_path, monkeypatch, capfd
):
    now = iter([0.0, 0.5, 1.5])
    monkeypatch.setattr("tdmvid.train.signals.time.monotonic", lambda: next(now))
    with pytest.raises(KeyboardInterrupt), Watch(tmp_path, launch.start("none"), 1.0) as watch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (
            watch.told_to_stop()
            and capfd.readouterr().err.count("stopping after this iteration") == 1
        )
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_shell_has_turned_off_stays_off(tmp_path):
    """As for what a script starts in the background."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Watch(tmp_path, launch.start("none"), 1.0) as watch:
            signal.raise_signal(signal.SIGINT)
            assert not watch.told_to_stop()
    finally:
        signal.signal(signal.SIGINT, old)
