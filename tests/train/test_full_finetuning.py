"""Training three full networks instead of adapters gives a student that is a diffusers model."""

import json

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from launched import ranks
from safetensors.torch import load_file

from tdmvid.train.trainer import train


@pytest.mark.slow
def test_a_fully_trained_student_comes_out_as_a_stock_transformer(
    tiny_run, tiny_cogvideox, tmp_path, capsys
):
    teacher = tiny_cogvideox("sincos")
    before = (teacher / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    train(tiny_run(tmp_path, "training=full", "steps=2", "ema=0.5", "student.lr=1e-3"))
    student = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "student").state_dict()
    average = load_file(
        tmp_path / "checkpoints" / "step_000002" / "student" / "average.safetensors"
    )
    assert len(average) > 20 and all(
        torch.equal(student[name], value) for name, value in average.items()
    )
    base = CogVideoXTransformer3DModel.from_pretrained(
        teacher, subfolder="transformer"
    ).state_dict()
    assert sum(not torch.equal(student[name], base[name]) for name in average) > 20
    scheduler = CogVideoXDDIMScheduler.from_pretrained(tmp_path / "student")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert (teacher / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (
        (tmp_path / "report.html").exists()
        and not (tmp_path / "lora").exists()
        and not (tmp_path / ".student.part").exists()
    )
    assert "student, reloaded in a stock pipeline: relative difference" in capsys.readouterr().out
    assert [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ] == [0, 1]


@pytest.mark.slow
def test_two_ranks_that_share_three_whole_networks_end_in_a_checked_one(tiny_json, tmp_path):
    """At the end all networks are sharded, including the teacher's."""
    out = tmp_path / "run"
    status, said = ranks(tiny_json, out, "training=full", "steps=2", "ema=0.5")
    assert status == 0 and "reloaded in a stock pipeline" in said, said
    facts = json.loads((out / "student" / "export.json").read_text())
    assert facts["error"] < 1e-4 and (out / "report.html").stat().st_size > 10_000
