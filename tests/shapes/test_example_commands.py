"""Every program of examples/ runs from its command to its files. What takes long is cut short."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from refusals import refused

from examples.shapes import (
    make_frames,
    make_night_lora,
    make_prompts,
    make_teacher,
    make_videos,
    quality,
    score_night,
    show_image_student,
    train_judge,
    train_transformer,
    vae,
)
from tdmvid.shapes import PROMPTS, world

VIDEO = (3, world.FRAMES, world.SIZE, world.SIZE)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`command(module, *words)` runs a program's `main` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(module, *words):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
        module.main()

    return command


def replace_function(monkeypatch, module, name, function):
    """Replace a function by another one that has to be called with the same signature."""
    made = create_autospec(getattr(module, name), side_effect=function)
    monkeypatch.setattr(module, name, made)
    return made


def test_the_training_captions_are_those_that_the_program_writes(command, monkeypatch):
    monkeypatch.setattr(make_prompts, "PROMPTS", Path("prompts.txt"))
    command(make_prompts)
    assert Path("prompts.txt").read_bytes() == PROMPTS.read_bytes()
    parts = []
    for objects in ("one", "two"):
        command(make_prompts, "--objects", objects, "--out", f"new/{objects}.txt")
        mine = Path(f"new/{objects}.txt").read_text().splitlines()
        assert all((" and " in caption) == (objects == "two") for caption in mine)
        parts += mine
    assert sorted(parts) == sorted(PROMPTS.read_text().splitlines())


def test_first_frames_and_videos_are_written(command):
    command(make_frames, "--out", "frames", "--limit", 2)
    rows = [json.loads(line) for line in Path("frames/manifest.jsonl").read_text().splitlines()]
    assert rows and all((Path("frames") / row["file"]).is_file() for row in rows)
    command(make_videos, "--count", 1, "--out", "videos")
    assert [path.name for path in Path("videos").iterdir()] == ["00000.mp4"]


def test_a_style_is_trained_with_the_chosen_length(command, monkeypatch):
    train = replace_function(monkeypatch, make_night_lora, "train", lambda out, recipe: None)
    command(make_night_lora, "--out", "night", "--iterations", 3)
    train.assert_called_once_with(Path("night"), make_night_lora.Recipe(iterations=3))


def test_a_style_and_its_students_are_scored(command, monkeypatch):
    pipes = {"teacher": (None, 50, 2.0), "student": (None, 4, 1.0)}
    replace_function(monkeypatch, score_night, "samplers", lambda style, run: pipes)
    generator = torch.Generator().manual_seed(0)
    replace_function(
        monkeypatch,
        score_night,
        "sample",
        lambda pipe, things, **_: world.draw_videos(things, generator),
    )
    words = ("--style", "a", "--run", "b", "--captions", 4, "--seeds", 2, "--out", "page")
    command(score_night, *words)
    scores = json.loads(Path("page/scores.json").read_text())
    assert scores["student"]["steps"] == 4 and scores["student"]["night"] == 0
    assert scores["ground truth in the style"]["night"] == 1
    assert Path("page/samples.jpg").is_file()


def test_folders_without_a_style_or_a_student_are_refused(tmp_path):
    style, run = tmp_path / "style", tmp_path / "run"
    with refused("--style", style):
        score_night.samplers(style, run)
    style.mkdir()
    (style / "pytorch_lora_weights.safetensors").touch()
    with refused(run / "lora"):
        score_night.samplers(style, run)
    (run / "lora").mkdir(parents=True)
    with refused(f"--run {run}", "export.json"):
        score_night.samplers(style, run)


def test_the_picture_of_an_image_student_is_written(command, monkeypatch):
    videos = torch.zeros(3, *VIDEO)
    found = videos[:, :, 0], [videos, videos]
    replace_function(monkeypatch, show_image_student, "sample", lambda run, *, seed: found)
    command(show_image_student, "--run", "runs/x", "--out", "frames.png")
    assert Path("frames.png").stat().st_size


@dataclass(frozen=True)
class Short(train_transformer.Recipe):
    """A training of one iteration."""

    iterations: int = 1
    text_iterations: int = 1
    batch: int = 2
    videos: int = 4


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Cut every stage of the teacher to one iteration, and keep the embedded weights."""
    for name in ("VAE_ITERATIONS", "JUDGE_ITERATIONS", "DECODER_ITERATIONS"):
        monkeypatch.setattr(make_teacher, name, 1)
    drawn = vae.videos_for
    replace_function(
        monkeypatch, vae, "videos_for", lambda step, batch, seed: drawn(step, min(batch, 2), seed)
    )
    for name, value in (("POOL", 4), ("BATCH", 4), ("WEIGHTS", tmp_path / "judge.safetensors")):
        monkeypatch.setattr(train_judge, name, value)
    monkeypatch.setattr(train_transformer, "SHARD", 4)
    monkeypatch.setattr(train_transformer, "Recipe", Short)
    for name, value in (("CAPTIONS", 4), ("SWEEP_CAPTIONS", 4), ("SEEDS", 2), ("REFERENCE", 8)):
        monkeypatch.setattr(quality, name, value)
    generator = torch.Generator().manual_seed(0)
    replace_function(
        monkeypatch,
        quality,
        "sample",
        lambda pipe, things, **_: world.draw_videos(things, generator),
    )
    replace_function(monkeypatch, quality, "psnr", lambda vae: 30.0)
    replace_function(monkeypatch, quality, "accuracy", lambda judge, *, count: 1.0)


@pytest.mark.slow
def test_the_teacher_is_made_stage_by_stage(command, short, monkeypatch, tmp_path):
    made = replace_function(
        monkeypatch, make_teacher, "make_image_teacher", lambda work, device, iterations: None
    )
    with refused("--stage vae"):
        command(make_teacher, "--stage", "judge", "--work", "work")
    command(make_teacher, "--work", "work", "--out", "made", "--image-iterations", 5)
    quality_ = json.loads(Path("made/quality.json").read_text())
    assert quality_["vae_psnr_db"] == 30 and quality_["scores"]["50_steps_guided"]["all"]
    assert json.loads(Path("made/made.json").read_text())["iterations"] == 1
    assert (tmp_path / "judge.safetensors").is_file()
    made.assert_called_once_with(Path("work"), "cpu", 5)


def test_a_stage_that_comes_too_early_names_the_one_before(command):
    with refused("teacher.pt", "--stage teacher"):
        command(make_teacher, "--stage", "assemble", "--work", "work", "--out", "made")
