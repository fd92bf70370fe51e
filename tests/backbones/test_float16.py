"""float16 in every family, with the flags of the released autoencoders' configs."""

import json

import numpy as np
import pytest
import torch
from families import BUILDERS

from tdmvid.backbones.registry import ARCHITECTURES, load_backbone
from tdmvid.config import ModelConfig
from tdmvid.sampling.student import use_student

PROMPTS = ["a red circle moves left", "a blue square"]


def released_flags():
    """Yield (pipeline class, force_upcast in its released autoencoder), each pair once."""
    found = set()
    for folder in sorted(ARCHITECTURES.iterdir()):
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        found.add((name, json.loads((folder / "vae/config.json").read_text()).get("force_upcast")))
    return sorted(found, key=str)


@pytest.fixture(params=released_flags(), ids=lambda flags: "-".join(map(str, flags)))
def folder(request, tmp_path):
    name, upcast = request.param
    torch.manual_seed(0)
    BUILDERS[name].build(BUILDERS[name].VARIANTS[0]).save_pretrained(tmp_path)
    path = tmp_path / "vae/config.json"
    config = json.loads(path.read_text())
    config.pop("force_upcast", None)
    path.write_text(json.dumps(config | ({} if upcast is None else {"force_upcast": upcast})))
    return name, tmp_path


def whole_call(name, folder, dtype):
    """Return the images of a complete stock pipeline around a backbone, in 0 ... 255."""
    backbone = load_backbone(ModelConfig(path=str(folder), dtype=dtype), BUILDERS[name].SIZE)
    torch.manual_seed(1)
    images = backbone.blank_images(len(PROMPTS)) if backbone.takes_images else None
    made = backbone.stock.videos(
        use_student(backbone, None, whole=True), PROMPTS, steps=2, cfg=2.0, images=images
    )
    latents = torch.randn(1, *backbone.latent_shape(), generator=torch.Generator().manual_seed(2))
    assert backbone.decode(latents).isfinite().all()
    return np.stack([np.asarray(one, dtype=np.float32) for one in made])


def test_a_whole_pipeline_makes_pictures_in_float16(folder):
    pictures = whole_call(*folder, "float16")
    assert np.isfinite(pictures).all() and pictures.std() > 0
