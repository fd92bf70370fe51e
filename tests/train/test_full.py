"""Three whole networks instead of adapters: the student comes out as a diffusers model."""

import json

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import load_file

from tdmvid.train.trainer import train


def test_a_fully_trained_student_comes_out_as_a_stock_transformer(tiny_run, tiny_cogvideox, tmp_path, capsys):
    teacher = tiny_cogvideox("sincos")
    before = (teacher / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    train(tiny_run(tmp_path, "training=full", "steps=2", "ema=0.5", "student.lr=1e-3"))
    student = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "student").state_dict()
    average = load_file(tmp_path / "checkpoints" / "step_000002" / "student" / "average.safetensors")
    assert len(average) > 20 and all(torch.equal(student[name], value) for name, value in average.items())
    base = CogVideoXTransformer3DModel.from_pretrained(teacher, subfolder="transformer").state_dict()
    assert sum(not torch.equal(student[name], base[name]) for name in average) > 20
    scheduler = CogVideoXDDIMScheduler.from_pretrained(tmp_path / "student")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert (teacher / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (tmp_path / "report.html").exists() and not (tmp_path / "lora").exists() and not (tmp_path / ".student.part").exists()
    assert "student, reloaded in a stock pipeline: relative difference" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1]
