"""`--pipeline` of commands uses a model of text to video in its other pipeline, with images."""

import json

import pytest
import torch
from families import BUILDERS
from refusals import refused
from safetensors.torch import save_file

from tdmvid.cli.main import main
from tdmvid.data.video import read_video, write_image
from tdmvid.export.load import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Wan 2.2 TI2V folder, which names the pipeline without an image, and two images."""
    folder, builder = tmp_path_factory.mktemp("ti2v"), BUILDERS["WanPipeline"]
    builder.build("ti2v").save_pretrained(folder / "base")
    size = builder.SIZE
    for name, level in (("dark", -0.8), ("light", 0.6)):
        write_image(folder / f"{name}.png", torch.full((3, size.height, size.width), level))
    return folder


def shape():
    size = BUILDERS["WanPipeline"].SIZE
    return f"{size.frames}x{size.height}x{size.width}"


def sample(folder, out, image, *more):
    (folder / "items.csv").write_text(f"image,prompt\n{image}.png,a circle\n")
    words = ["--prompts", folder / "items.csv", "--out", out, "--cache", folder / "cache"]
    words += ["--model", folder / "base", "--size", shape(), "--steps", "2", "--cfg", "1", *more]
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


def export(folder, out, *more):
    """Export a published LoRA of TI2V with an image."""
    stem, width = "transformer.blocks.0.attn1.to_q", 36
    tensors = {f"{stem}.lora_A.weight": torch.randn(2, width)}
    tensors[f"{stem}.lora_B.weight"] = torch.randn(width, 2)
    save_file(tensors, folder / "theirs.safetensors", metadata={"format": "pt"})
    words = ["--published", folder / "theirs.safetensors", "--model", folder / "base", "--out", out]
    words += ["--size", shape(), "--steps", "2", "--prompt", "a circle"]
    main(["export", *map(str, [*words, "--image", folder / "dark.png", *more])])


def test_a_lora_for_images_is_exported_with_a_base_that_names_the_other_pipeline(folder, tmp_path):
    export(folder, tmp_path / "out", "--pipeline", "WanImageToVideoPipeline")
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["pipeline"] == facts["model"]["pipeline"] == "WanImageToVideoPipeline"
    assert "pipe = WanImageToVideoPipeline" in (tmp_path / "out" / "README.md").read_text()
    assert type(load_pipeline(tmp_path / "out")).__name__ == "WanImageToVideoPipeline"


def test_refused_images_are_answered_with_the_pipeline_that_takes_them(folder, tmp_path):
    facts = ("error", "image", "--pipeline WanImageToVideoPipeline")
    with refused("--image=", *facts, error=SystemExit):
        export(folder, tmp_path / "out")
    for option in (("--images", folder / "dark.png"), ("--image-column", "image")):
        with refused(option[0], *facts, error=SystemExit):
            sample(folder, tmp_path / "out", "dark", *option)
    with refused("model.variant='int3'", error=SystemExit):
        export(folder, tmp_path / "out", "--variant", "int3")
    assert not (tmp_path / "out").exists()
