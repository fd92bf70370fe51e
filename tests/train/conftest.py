"""A run of a tiny pipeline: seconds from start to report."""

import json
from pathlib import Path

import pytest

from tdmvid.config import load_config

PROMPTS = [
    f"a {colour} {shape} moves {way}"
    for colour in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "right")
]
GALLERY = "a red circle"


@pytest.fixture(scope="session")
def tiny_json(tiny_cogvideox, tmp_path_factory):
    """The config file of a tiny run with 8 prompts; its embeddings are cached once for all tests."""
    folder = tmp_path_factory.mktemp("tiny_run")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "tiny.json").write_text(
        json.dumps(
            {
                "model": {"path": str(tiny_cogvideox("sincos"))},
                "video": {"frames": 9, "height": 32, "width": 32},
                "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
                "steps": 8,
                "lora": {"rank": 2, "alpha": 4},
                "student": {"lr": 1e-2},
                "fake": {"lr": 1e-2},
                "log": {
                    "checkpoint_every": 2,
                    "sample_every": 0,
                    "sample_prompts": [GALLERY],
                    "teacher_steps": 2,
                },
            }
        )
    )
    return folder / "tiny.json"


@pytest.fixture(scope="session")
def tiny_run(tiny_json):
    """`tiny_run(out, "steps=3", ...)`: its config, changed."""
    return lambda out, *changes: load_config(tiny_json, [f"out={Path(out)}", *changes])


@pytest.fixture
def loop_only(monkeypatch):
    """Runs end after the last step, without pictures and export."""
    monkeypatch.setattr("tdmvid.train.trainer.finish", lambda run: None)
    monkeypatch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
