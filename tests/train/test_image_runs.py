"""A run of an image-to-video model that is interrupted or killed resumes bit-identically."""

import json

import pytest
import torch
from families import BUILDERS
from launched import DIE_IN_THE_SECOND_SAVE, ranks
from safetensors.torch import load_file

from tdmvid.config import load_config
from tdmvid.data.video import write_image
from tdmvid.train.monitor import Monitor, read_metrics
from tdmvid.train.trainer import train

STEPS = 4


COGVIDEOX = ("CogVideoXImageToVideoPipeline", "learned")
EXPERTS = ("WanImageToVideoPipeline", "experts")
ENCODER = ("WanImageToVideoPipeline", "encoder")
FIRST_FRAME = ("WanImageToVideoPipeline", "first_frame")


@pytest.fixture
def run_of(request, tmp_path):
    """Return a function: out -> config of a streaming run on two prompts with first frames."""
    family, variant = getattr(request, "param", COGVIDEOX)
    builder = BUILDERS[family]
    torch.manual_seed(0)
    builder.build(variant).save_pretrained(tmp_path / "base")
    size, experts = builder.SIZE, variant == "experts"
    for name, level in (("dark", -0.8), ("light", 0.6)):
        write_image(tmp_path / f"{name}.png", torch.full((3, size.height, size.width), level))
    (tmp_path / "items.csv").write_text("image,prompt\ndark.png,a circle\nlight.png,a square\n")
    settings = {
        "model": {"path": str(tmp_path / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "prompts": {"path": str(tmp_path / "items.csv"), "cache": str(tmp_path / "cache")},
        "objective": {"rollout": "stream", **({"stagger": "none"} if experts else {})},
        "steps": STEPS,
        "lora": {"rank": 2, "alpha": 4},
        "student": {"lr": 1e-2},
        "fake": {"lr": 1e-2},
        "ema": 0.5,
        "log": {"checkpoint_every": 2, "sample_every": 0},
    }
    if experts:  # a time of this grid is just below the boundary
        settings["grid"] = {"kind": "shifted", "shift": 2.0}
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    return lambda out: load_config(tmp_path / "tiny.json", [f"out={tmp_path / out}"])


def losses(folder):
    """Return the losses of student and fake in each iteration."""
    columns = read_metrics(folder / "metrics.jsonl")
    return list(zip(columns["step"], columns["loss/student"], columns["loss/fake"], strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("loop_only")
@pytest.mark.parametrize(
    "run_of",
    [COGVIDEOX, EXPERTS, ENCODER, FIRST_FRAME],
    indirect=True,
    ids=["CogVideoX", "A14B", "Wan 2.1", "TI2V-5B"],
)
def test_an_interrupted_image_run_resumes_digit_for_digit(run_of, tmp_path, monkeypatch):
    log = Monitor.log

    def interrupted(monitor, step, scalars):
        log(monitor, step, scalars)
        if step == 2:
            raise KeyboardInterrupt

    train(run_of("whole"))
    monkeypatch.setattr(Monitor, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run_of("cut"))
    monkeypatch.setattr(Monitor, "log", log)
    train(run_of("cut"), resume="auto")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len({loss for _, _, loss in losses(tmp_path / "cut")}) == STEPS
    last = f"checkpoints/step_{STEPS:06d}"
    files = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole" / last).rglob("*.safetensors")
    )
    assert files
    for file in files:
        whole, cut = (load_file(tmp_path / out / file) for out in ("whole", "cut"))
        assert whole.keys() == cut.keys()
        assert all(torch.equal(value, cut[name]) for name, value in whole.items())


@pytest.mark.slow
def test_two_ranks_of_an_image_run_resume_after_one_was_killed_while_saving(run_of, tmp_path):
    run_of("any")  # writes the config
    config, more = tmp_path / "tiny.json", ("batch.total=2", "steps=6", "log.teacher_steps=2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, said = ranks(config, whole, *more)
    assert status == 0, said
    status, said = ranks(config, killed, *more, script=DIE_IN_THE_SECOND_SAVE, folder=tmp_path)
    assert status != 0 and "SIGKILL" in said
    assert [path.name for path in (killed / "checkpoints").glob("step_*")] == ["step_000002"]
    status, said = ranks(config, killed, *more)
    assert status == 0, said
    assert losses(killed) == losses(whole)
    first, second = (
        load_file(next((out / "lora").glob("*.safetensors"))) for out in (whole, killed)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
