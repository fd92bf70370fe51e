"""The text reward reads the quoted words of a prompt."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from refusals import refused

from tdmvid.rewards import find_function
from tdmvid.rewards.text import TextReward, load_text
from tdmvid.scoring.image_metrics.text import legibility

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None,
    reason="text was not read: no tesseract here (apt-get install tesseract-ocr)",
)


def sign(words):
    """A frame [3, 1, H, W] with black words on white."""
    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 20), words, fill="black", font=ImageFont.load_default(size=48))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, None].float() / 127.5 - 1


@needs_tesseract
@pytest.mark.slow
def test_words_that_are_there_are_rewarded():
    samples = torch.stack([sign("OPEN"), sign("OPEN"), sign(""), sign("OPEN")])
    prompts = ['a sign "open"', 'a sign "bakery"', 'a sign "open"', "a sign"]
    found = find_function("text")(samples, prompts)
    assert found[0] == 1 and found[1] < 0.5 and found[2:].tolist() == [0, 0]


@needs_tesseract
@pytest.mark.slow
def test_words_must_stay_through_a_video():
    video = torch.cat([sign("OPEN"), sign("OPEN"), sign("")], dim=1)[None]
    assert float(find_function("text")(video, ['a sign "open"'])) == pytest.approx(2 / 3)


def test_prompts_without_words_are_refused_at_the_start():
    TextReward().check_prompts(["a lake", 'a sign "open"'])
    with refused("rewards.function='text'", "quotation marks"):
        TextReward().check_prompts(["a lake", "a dog's bone"])


def test_signals_that_stop_a_run_do_not_end_the_program(tmp_path, monkeypatch):
    """A shell script in its place sends them to itself before it answers."""
    program = tmp_path / "tesseract"
    program.write_text("#!/bin/sh\nfor one in INT TERM USR1; do kill -$one $$; done\necho OPEN\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert legibility(tmp_path / "frame.png", "open") == 1


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with refused("rewards.function='text'", "tesseract-ocr"):
        load_text("")
