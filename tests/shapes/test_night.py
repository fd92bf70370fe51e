"""The night style: what it draws, how it is recognised, and the LoRA that is trained on it."""

import pytest
import torch
from diffusers import CogVideoXPipeline
from scales import assert_close

from examples.shapes import night
from examples.shapes.make_night_lora import Recipe, train
from tdmvid.shapes import TEACHER, world
from tdmvid.shapes.judge import attributes, load_judge


def _drawn(draw, things):
    return draw(things, torch.Generator().manual_seed(1))


def test_only_videos_in_the_style_show_it_and_the_judge_reads_both():
    things = world.draw_captions(24, torch.Generator().manual_seed(0))
    dark, plain = _drawn(night.draw_videos, things), _drawn(world.draw_videos, things)
    assert night.shows_night(dark).all() and not night.shows_night(plain).any()
    assert_close(night.background(dark), torch.full((24,), night.SHADE), 1e-5)
    assert attributes(load_judge(), dark, things)["all"].float().mean() > 0.95


def test_the_style_changes_the_background_alone():
    things = world.draw_captions(4, torch.Generator().manual_seed(0))
    dark, plain = _drawn(night.draw_videos, things), _drawn(world.draw_videos, things)
    background = (plain - plain.flatten(3).median(3).values[..., None, None]).abs().amax(1) < 1e-3
    object_ = (dark.amax(1) - dark.amin(1)) > 1.0  # strongly coloured
    assert (dark - plain).abs().amax(1)[background].min() > 0.02
    assert (dark - plain).abs().amax(1)[object_].median() < 1e-3


@pytest.mark.slow
def test_a_short_training_writes_a_lora_that_the_stock_pipeline_loads(tmp_path):
    train(tmp_path, Recipe(iterations=2, batch=2, videos=4, rank=2))
    pipe = CogVideoXPipeline.from_pretrained(TEACHER)
    pipe.load_lora_weights(tmp_path)
    state = pipe.transformer.state_dict()
    up = [value for name, value in state.items() if "lora_B" in name]
    assert len(up) == 6 * len(pipe.transformer.transformer_blocks)
    assert all(value.abs().max() > 0 for value in up)
