"""A tiny teacher, a bundle of its student, and a function that samples from either."""

import json

import pytest
import torch
from peft import LoraConfig

from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.parallel.launch import World
from tdmvid.sampling.sample import Sampler, sample_videos
from tdmvid.sampling.shots import plan_shots

PROMPTS = ["a red circle moves left", "a blue square", "a red square"]
ONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def backbone(tiny_cogvideox):
    return load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))


@pytest.fixture(scope="module")
def student(backbone, make_student, tmp_path_factory):
    return make_student(backbone, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def make_student():
    """`make_student(backbone, folder)` writes a bundle and returns its folder."""
    return _make_student


def _make_student(backbone, folder):
    """Write a bundle as exported: a LoRA with an effect, a scheduler of 2 steps, export.json."""
    folder.mkdir(exist_ok=True)
    generator, state, size = torch.Generator().manual_seed(0), {}, backbone.size
    for name, layer in backbone.network.named_modules():
        if name.endswith("to_q"):
            state[f"{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            state[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator)
    backbone.lora.save(folder, state, LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    backbone.student_scheduler(uniform(2, backbone.process)).save_pretrained(folder)
    facts = {
        "steps": 2,
        "rank": 2,
        "model": {"path": str(backbone.folder), "dtype": "float32"},
        "video": {"frames": size.frames, "height": size.height, "width": size.width, "fps": 5},
    }
    (folder / "export.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def make(backbone, tmp_path):
    """`make(out, prompts, seeds, ...)` returns the manifest and counts samples in `make.videos`."""

    def make(
        out,
        prompts=PROMPTS,
        seeds=(0, 1),
        *,
        sampler=Sampler(steps=2, cfg=1.0),
        naming="index",
        **others,
    ):
        shots = plan_shots(list(prompts), seeds, frames=9, naming=naming)
        return sample_videos(
            tmp_path / out,
            shots,
            backbone=backbone,
            sampler=sampler,
            cache=tmp_path / "cache",
            **{"world": ONE} | others,
        )

    return make
