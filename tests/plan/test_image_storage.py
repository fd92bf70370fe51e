"""The conditions of given images are part of the disk that a plan counts."""

import json
import math

import pytest
import torch
from families import BUILDERS

from tdmvid.adapters.teacher import load_teacher
from tdmvid.config import ModelConfig, load_config
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.plan.storage import count_storage


@pytest.mark.parametrize(
    "name, variant",
    [
        ("CogVideoXImageToVideoPipeline", "learned"),
        pytest.param("CogVideoXImageToVideoPipeline", "ofs", marks=pytest.mark.slow),
        *(
            pytest.param("WanImageToVideoPipeline", variant, marks=pytest.mark.slow)
            for variant in ("encoder", "experts", "first_frame")
        ),
    ],
)
def test_shapes_are_those_of_an_encoded_image(tmp_path, name, variant):
    builder = BUILDERS[name]
    builder.build(variant).save_pretrained(tmp_path)
    backbone = load_teacher(ModelConfig(path=str(tmp_path)), builder.SIZE)
    found = backbone.encode_images(torch.zeros(1, 3, builder.SIZE.height, builder.SIZE.width))
    shapes = backbone.spec.image_shapes(backbone.network, backbone.folder, backbone.size)
    assert shapes == {key: tuple(value.shape[1:]) for key, value in found.items()}


@pytest.mark.slow
def test_the_disk_row_counts_an_image_for_each_prompt(tmp_path):
    builder = BUILDERS["CogVideoXImageToVideoPipeline"]
    builder.build("learned").save_pretrained(tmp_path / "base")
    size = builder.SIZE
    (tmp_path / "prompts.txt").write_text("a circle\na square\na ring\n")
    settings = {
        "model": {"path": str(tmp_path / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "prompts": {"path": str(tmp_path / "prompts.txt"), "images": str(tmp_path / "none")},
        "lora": {"rank": 2, "alpha": 4},
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))
    plan = make_plan(load_config(tmp_path / "run.json", [f"out={tmp_path / 'out'}"]))
    storage = count_storage(plan)
    channels, side = 8, math.prod((size.height // 8, size.width // 8))
    assert storage.images == 3 * 4 * channels * side
    assert storage.written == pytest.approx(
        storage.embeddings + storage.images + storage.checkpoints + storage.export
    )
    assert "of given images" in describe(plan)
