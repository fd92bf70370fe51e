"""What takes a run folder names it, if it gets a folder inside."""

import json
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.cli.main import main

COMMANDS = ["score shapes --run", "export --run"]


@pytest.fixture
def run(tmp_path, tiny_json):
    """The folder `runs/x` of a run that trained a whole network, beside the working folder."""
    folder = tmp_path / "runs" / "x"
    for inside in ("lora", "student", "checkpoints/step_000500"):
        (folder / inside).mkdir(parents=True)
    (folder / "config.json").write_bytes(Path(tiny_json).read_bytes())
    (folder / "student" / "config.json").write_text(json.dumps({"_class_name": "UNet"}))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("inside", ["lora", "student", "checkpoints", "checkpoints/step_000500"])
def test_a_folder_in_a_run_is_answered_with_the_run(run, tmp_path, monkeypatch, command, inside):
    monkeypatch.chdir(tmp_path)
    given = Path("runs/x") / inside
    with refused("error", given, error=SystemExit) as caught:
        main([*command.split(), str(given)])
    assert str(caught.value).endswith("use runs/x")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_working_folder_may_be_in_a_run(run, monkeypatch, command):
    monkeypatch.chdir(run / "lora")
    with refused("error", f"use {run}", error=SystemExit):
        main([*command.split(), "."])


def test_a_run_to_average_with_is_checked_too(run, monkeypatch):
    monkeypatch.setattr("tdmvid.export.trained._find_checkpoint", lambda *_: run)
    monkeypatch.setattr("tdmvid.export.trained.read_student", lambda *_: {})
    meta = {"step": 1, "fingerprint": {}}
    monkeypatch.setattr("tdmvid.export.trained.read_meta", lambda *_: meta)
    monkeypatch.setattr("tdmvid.export.trained._check_sampled", lambda *_: None)
    with refused("error", run / "lora", f"use {run}", error=SystemExit):
        main(["export", "--run", str(run), "--average-with", str(run / "lora")])


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_in_no_run_is_refused(tmp_path, command):
    with refused("error", tmp_path, "config.json", "tdmvid train", error=SystemExit):
        main([*command.split(), str(tmp_path)])
