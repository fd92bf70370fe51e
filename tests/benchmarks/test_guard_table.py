"""The table of healthy and broken runs, made from stored samples."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.guard import RECIPES, out_of_bands, summary, wrong_settings


@pytest.fixture
def folder(tmp_path):
    """A run that equals its teacher at first, and then noise twice, at half and at full
    strength.
    """
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 3, 5, 1, 1, generator=generator).expand(-1, -1, -1, 32, 32) * 200
    grain = 60 * torch.randn(clean.shape, generator=generator)
    latents = torch.randn(3, 2, 4, 4, generator=generator)
    own = tmp_path / "wrong_sign"
    own.mkdir()

    def keep(path, share):
        pixels = (clean + share * grain).clamp(0, 255).to(torch.uint8).contiguous()
        save_file({"pixels": pixels, "latents": latents}, path)

    keep(tmp_path / "teacher.safetensors", 0.01)
    for step, share in ((0, 0.01), (10, 0.5), (20, 1.0)):
        keep(own / f"step_{step:06d}.safetensors", share)
    (tmp_path / "batch.json").write_text(json.dumps({"prompts": [0, 1, 0]}))
    return own


def test_a_row_says_when_a_run_left_the_bands_and_how(folder):
    row = summary("wrong sign", folder)
    assert row["left the bands after"] == 10 and row["iterations"] == 20
    assert "sharpness" in row["outside at the end"]
    assert row["distances"][0] == 0 < row["distances"][10] < row["distances"][20]


def test_a_run_that_came_back_is_within_its_bands(folder):
    shutil.copy(folder / "step_000000.safetensors", folder / "step_000030.safetensors")
    assert out_of_bands(folder) == []


@pytest.mark.parametrize("name", RECIPES)
def test_settings_of_healthy_runs_are_in_order(name):
    found = wrong_settings(RECIPES[name])
    expected = {
        "frozen fake": ["fake_rate"],
        "fake.lr=2e-5": ["fake_rate"],
        "student.lr=0.1": ["fake_rate"],
        "student.lr=0.1, 8 videos": ["fake_rate"],
        "float16, student.lr=10": ["fake_rate"],
        "one prompt": ["prompt_uses"],
        "far too much guidance": ["guidance"],
        "no guidance, 8 videos": ["guidance"],
    }
    assert found == expected.get(name, [])
    assert not found or RECIPES[name].broken
