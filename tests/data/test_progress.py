"""Bars appear for what takes long, live while a step takes long, and leave nothing behind."""

import os
import subprocess
import sys
import time

import pytest
from launched import ROOT

from tdmvid.data import progress as module
from tdmvid.data.progress import progress


@pytest.fixture
def quick(monkeypatch):
    """A bar appears after a tenth of a second, and its lines follow each other as fast."""
    monkeypatch.setattr(module, "QUICK", 0.1)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.delenv("RANK", raising=False)


def test_what_is_quick_is_silent(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with progress("decoding", total=1000) as bar:
        for _ in range(1000):
            bar.update()
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_drawn_while_one_step_takes_long(quick, capsys):
    with progress("decoding", total=2, unit="sample") as bar:
        bar.update()
        time.sleep(0.35)
        said = capsys.readouterr()
    assert said.out == "" and said.err.count("decoding") >= 2
    assert "1/2" in said.err and "00:00<00:00" in said.err, "elapsed and left"


def test_what_has_no_number_of_steps_shows_the_time(quick, capsys):
    with progress("searching"):
        time.sleep(0.25)
    assert "searching: 00:00" in capsys.readouterr().err


def test_other_ranks_show_nothing(quick, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with progress("decoding", total=2) as bar:
        bar.update()
        time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_the_user_can_turn_bars_off():
    program = (
        "import time; from tdmvid.data import progress as p; p.QUICK = p.PATIENCE = 0.05\n"
        "with p.progress('decoding', total=2) as bar: bar.update(); time.sleep(0.2)"
    )
    for off, shown in (("", True), ("1", False)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"TQDM_DISABLE": off, "RANK": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("decoding" in done.stderr) is shown


def test_an_error_ends_the_bar(quick, capsys):
    with pytest.raises(ValueError), progress("decoding", total=2):
        raise ValueError
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_plan_shows_its_progress_and_prints_the_plan_alone(tiny_json):
    program = (
        "import sys; from tdmvid.data import progress; progress.QUICK = progress.PATIENCE = 0.05\n"
        "from tdmvid.cli.main import main; main(sys.argv[1:])"
    )
    words = ["plan", "--config", str(tiny_json)]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        env=os.environ | {"RANK": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "planning" in done.stderr and "/3" in done.stderr
    assert "planning" not in done.stdout and "\r" not in done.stdout
