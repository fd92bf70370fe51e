"""The shapes world: captions can be parsed, splits are disjoint, and videos show what captions
say.
"""

import torch
from refusals import refused

from examples.shapes import text
from tdmvid.shapes import world


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_caption_parses_back_to_its_things():
    for things in world.draw_captions(300, _generator(0)):
        assert world.parse(world.caption(things)) == things


def test_a_sentence_of_another_world_is_refused_with_the_remedy():
    with refused("a purple dog moving left", "a red ring moving left"):
        world.parse("a purple dog moving left")


def test_training_and_held_out_captions_are_disjoint():
    train = {world.caption(t) for t in world.draw_captions(4000, _generator(1))}
    held = {world.caption(t) for t in world.draw_captions(500, _generator(2), test=True)}
    assert not train & held
    assert len(held) > 100


def test_the_same_seed_draws_the_same_videos():
    things = world.draw_captions(4, _generator(3))
    assert torch.equal(
        world.draw_videos(things, _generator(4)), world.draw_videos(things, _generator(4))
    )


def test_the_object_has_its_colour_and_moves_where_the_caption_says():
    for direction, (dx, dy) in enumerate(world.DIRECTIONS.values()):
        video = world.draw_videos([(world.Thing(0, 0, direction),)], _generator(direction))[0]
        red = (video[0] - video[1]).clamp(min=0.5) - 0.5  # [F, H, W], background is grey
        mass, grid = red.sum((1, 2)), torch.arange(world.SIZE, dtype=torch.float32)
        x, y = (red.sum(1) @ grid) / mass, (red.sum(2) @ grid) / mass
        along, across = (x * dx + y * dy).diff(), (x * dy + y * dx).diff()
        assert (along > 1.4).all() and (along < 3.8).all()
        assert across.abs().max() < 0.3


def test_every_word_of_the_world_is_one_known_token_before_and_after_saving(tmp_path):
    tokenizer = text.build_tokenizer()
    text.check_round_trip(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text.check_round_trip(again)
    assert text.token_ids(again, [""])[0].tolist() == [1] + [0] * 15
