"""Layouts: exact on drawn scenes, and the reward and the second judge agree with the scene."""

import dataclasses

import pytest
import torch

from examples.shapes.second_judge import SecondJudge, load_second_judge, named_colours
from examples.shapes.train_judge import targets
from tdmvid.rewards.shapes import clear, correct
from tdmvid.shapes import layout, score, world


def scene_of(captions, **changes):
    things = [world.parse(caption) for caption in captions]
    scene = world.sample_scene(things, torch.Generator().manual_seed(0))
    return things, dataclasses.replace(scene, **changes)


def test_a_square_is_inside_until_its_edge_reaches_the_frame():
    """A square of radius 10 has sides of 17.2 pixels, so its edge is 8.6 pixels from its centre."""
    for centre, inside in ((12.0, True), (8.0, False)):
        _, scene = scene_of(
            ["a red square moving right"],
            radius=torch.full((1, 2), 10.0),
            start=torch.tensor([[[centre, 32.0]] * 2]),
            speed=torch.full((1, 2), 2.0),
            angle=torch.zeros(1, 2),
            spin=torch.zeros(1, 2),
        )
        masks = world.cover(scene) > layout.COVER
        assert layout.inside(masks).tolist() == [inside]
        assert layout.apart(masks).tolist() == [True], "a single object touches nothing"


def test_two_objects_are_apart_if_they_never_touch():
    for gap, apart in ((4.0, True), (0.0, False), (-6.0, False)):
        _, scene = scene_of(
            ["a red square moving down and a blue square moving down"],
            radius=torch.full((1, 2), 10.0),
            start=torch.tensor([[[20.0, 16.0], [20 + 17.2 + gap, 16.0]]]),
            speed=torch.full((1, 2), 2.0),
            angle=torch.zeros(1, 2),
            spin=torch.zeros(1, 2),
        )
        masks = world.cover(scene) > layout.COVER
        assert layout.apart(masks).tolist() == [apart], gap
        assert layout.clear(masks).tolist() == [apart], gap


@pytest.fixture(scope="module")
def drawn():
    things = score.evaluation_set(24, 2, seed=3)
    scene = world.sample_scene(things, torch.Generator().manual_seed(4))
    return things, scene, world.render(scene)


@pytest.mark.slow
def test_the_colours_show_the_layout_of_the_scene(drawn):
    things, scene, videos = drawn
    truth = layout.clear(world.cover(scene) > layout.COVER)
    found = layout.clear(layout.find_objects(videos, things))
    assert 0.3 < truth.float().mean() < 0.6
    assert (truth == found).float().mean() >= 0.9


@pytest.mark.slow
def test_the_reward_wants_a_correct_video_with_a_clear_layout(drawn):
    things, _, videos = drawn
    prompts = [world.caption(t) for t in things]
    wanted = layout.clear(layout.find_objects(videos, things)).double() * correct(videos, prompts)
    assert torch.equal(clear(videos, prompts), wanted)
    others = prompts[2:] + prompts[:2]
    assert clear(videos, others).mean() < 0.1, "other captions' videos are not correct"


def test_the_second_judge_learns_the_layout_of_the_scene(drawn):
    """Its targets are those of the scene, and the named colours are its colours."""
    things, scene, _ = drawn
    wanted = targets(scene)
    masks = world.cover(scene) > layout.COVER
    assert torch.equal(wanted["inside"].bool(), layout.inside(masks))
    assert torch.equal(wanted["apart"].bool(), layout.apart(masks))
    for colours, t in zip(named_colours(wanted).tolist(), things):
        assert sorted(colours) == sorted([x.colour for x in t] + [-1] * (2 - len(t)))


def test_the_second_judge_calls_single_objects_apart(drawn):
    things, _, videos = drawn
    said = SecondJudge().judge(videos[:8], things[:8])
    singles = torch.tensor([len(t) == 1 for t in things[:8]])
    assert said["apart"][singles].all() and said["features"].shape == (8, 14)
    assert torch.equal(said["clear"], said["all"] & said["inside"] & said["apart"])


def test_a_missing_second_judge_is_reported(tmp_path):
    with pytest.raises(ValueError, match=r"--judge .*none\.safetensors.* train it"):
        load_second_judge(tmp_path / "none.safetensors")
