"""Shared fixtures: few threads, forward processes, and tiny CogVideoX pipeline folders."""

import json
import signal
from pathlib import Path

import pytest
import torch
from tiny import cogvideox_scheduler, tiny_pipeline

from tdmvid.config import load_config
from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell ignores SIGINT in its background jobs, and tested programs inherit that


@pytest.fixture(params=["vp", "flow"])
def process(request):
    """CogVideoX's schedule, whose last alpha is 0, and rectified flow."""
    return (
        TabulatedVP(cogvideox_scheduler().alphas_cumprod)
        if request.param == "vp"
        else RectifiedFlow()
    )


@pytest.fixture
def vp():
    return TabulatedVP(cogvideox_scheduler().alphas_cumprod)


@pytest.fixture(scope="session")
def tiny_cogvideox(tmp_path_factory):
    """`tiny_cogvideox(variant)`: folder of a tiny random pipeline, one of VARIANTS, made once per
    session.
    """
    made = {}

    def folder(variant: str):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(f"cogvideox_{variant}")
            tiny_pipeline(variant).save_pretrained(made[variant])
        return made[variant]

    return folder


PROMPTS = [
    f"a {colour} {shape} moves {way}"
    for colour in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "right")
]
GALLERY = "a red circle"


@pytest.fixture(scope="session")
def tiny_json(tiny_cogvideox, tmp_path_factory):
    """Config file of a tiny run with 8 prompts, whose embeddings are cached for all tests."""
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
    """`tiny_run(out, "steps=3", ...)`: config of the tiny run with changes."""
    return lambda out, *changes: load_config(tiny_json, [f"out={Path(out)}", *changes])


@pytest.fixture
def loop_only(monkeypatch):
    """Make runs end after the last step, without samples and export."""
    monkeypatch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
    monkeypatch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
