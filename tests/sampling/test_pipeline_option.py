"""`tdmvid sample --pipeline` uses a model of text to video in its other pipeline, with images."""

import json

import pytest
import torch
from families import BUILDERS
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.data.video import read_video, write_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Wan 2.2 TI2V folder, which names the pipeline without an image, and two images."""
    folder, builder = tmp_path_factory.mktemp("ti2v"), BUILDERS["WanPipeline"]
    builder.build("ti2v").save_pretrained(folder / "base")
    size = builder.SIZE
    for name, level in (("dark", -0.8), ("light", 0.6)):
        write_image(folder / f"{name}.png", torch.full((3, size.height, size.width), level))
    return folder


def sample(folder, out, image, *more):
    size = BUILDERS["WanPipeline"].SIZE
    (folder / "items.csv").write_text(f"image,prompt\n{image}.png,a circle\n")
    shape = f"{size.frames}x{size.height}x{size.width}"
    words = ["--prompts", folder / "items.csv", "--out", out, "--cache", folder / "cache"]
    words += ["--model", folder / "base", "--size", shape, "--steps", "2", "--cfg", "1", *more]
    main(["sample", *map(str, words)])


@pytest.mark.slow
def test_the_teacher_of_ti2v_starts_from_the_given_image(folder, tmp_path):
    pipeline = ("--pipeline", "WanImageToVideoPipeline")
    for image in ("dark", "light"):
        sample(folder, tmp_path / image, image, *pipeline)
    sample(folder, tmp_path / "text", "dark")
    entries = {}
    for name in ("dark", "light", "text"):
        [line] = (tmp_path / name / "manifest.jsonl").read_text().splitlines()
        entries[name] = json.loads(line)
    assert entries["dark"]["image"] == str(folder / "dark.png") and "image" not in entries["text"]
    assert entries["dark"]["settings"]["model"]["pipeline"] == "WanImageToVideoPipeline"
    videos = {name: read_video(tmp_path / name / entries[name]["file"]) for name in entries}
    assert not torch.equal(videos["dark"], videos["light"])  # the same noise and prompt
    assert not torch.equal(videos["dark"], videos["text"])
    with refused("model.pipeline", "'NoPipeline'", error=SystemExit):
        sample(folder, tmp_path / "none", "dark", "--pipeline", "NoPipeline")
