"""The judge and the metrics: right on ground truth, wrong on wrong captions, exact where a closed
form exists.
"""

import dataclasses

import pytest
import torch

from tdmvid.shapes import judge as judging
from tdmvid.shapes import metrics, score, world


@pytest.fixture(scope="module")
def judge():
    return judging.load_judge()


@pytest.fixture(scope="module")
def truth():
    things = score.evaluation_set(60, 4, seed=7)
    return world.draw_videos(things, torch.Generator().manual_seed(8)), things


def test_the_judge_is_right_on_held_out_ground_truth(judge, truth):
    right = judging.attributes(judge, *truth)
    for name, values in right.items():
        assert values.float().mean() >= 0.99, name


@pytest.mark.parametrize(("field", "count"), [("colour", 6), ("shape", 4), ("direction", 4)])
def test_the_judge_refuses_a_caption_with_one_wrong_word(judge, truth, field, count):
    videos, things = truth

    def wrong(thing):
        return dataclasses.replace(thing, **{field: (getattr(thing, field) + 1) % count})

    singles = [i for i, t in enumerate(things) if len(t) == 1]
    right = judging.attributes(judge, videos[singles], [(wrong(things[i][0]),) for i in singles])
    assert right[field].float().mean() <= 0.01
    assert right["all"].float().mean() <= 0.01


def test_an_empty_video_shows_nothing_that_was_asked_for(judge, truth):
    right = judging.attributes(judge, torch.full_like(truth[0], -0.4), truth[1])
    assert not any(values.any() for values in right.values())


def test_frechet_distance_of_a_set_from_itself_is_zero():
    x = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_shifted_scaled_sets_is_the_closed_form():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)).double()
    shift = torch.arange(8) / 4
    _, cov = metrics._moments(x)
    expected = (x.mean(0) * 2 - x.mean(0) + shift).square().sum() + cov.trace()  # (2 - 1)^2 tr C
    assert metrics.frechet_distance(2 * x + shift, x) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.slow
def test_ground_truth_scores_better_than_other_captions_and_is_reproducible(judge, truth):
    videos, things = truth
    reference = score.reference_features(judge, things, 512, seed=9)
    first, second = (score.score_videos(judge, videos, things, reference) for _ in range(2))
    assert first == second
    for measure in first.values():
        assert measure["low"] <= measure["value"] <= measure["high"]
    blurred = score.score_videos(
        judge, videos.mean(2, keepdim=True).expand_as(videos), things, reference
    )
    assert blurred["frechet"]["low"] > 2 * first["frechet"]["high"]
    assert blurred["all"]["high"] < first["all"]["low"]


def test_flicker_is_the_mean_step_of_the_background():
    steps = torch.tensor([0.0, 0.02] * 4 + [0.0])
    video = steps.view(1, 1, 9, 1, 1).expand(1, 3, 9, 64, 64).clone() - 0.5
    video[..., 20:40, 20:40] = torch.rand(9, 20, 20)  # an object moves, but is not background
    assert metrics.flicker(video).item() == pytest.approx(0.02 * 127.5, rel=0.05)


def test_an_evaluation_set_is_caption_major_held_out_and_in_the_worlds_shares():
    things = score.evaluation_set(50, 3, seed=1)
    assert len(things) == 150 and all(things[i] == things[i - i % 3] for i in range(150))
    assert all(world.held_out(world.caption(t)) for t in things)
    assert sum(len(t) == 2 for t in things) == 3 * 20
    assert 3 * 4 < sum(len(t) == 2 for t in things[:75]) < 3 * 16, (
        "the head is a sample of the whole"
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_evaluation_set_can_have_captions_of_one_kind_only(share):
    things = score.evaluation_set(40, 2, seed=1, pair_share=share)
    assert len(things) == 80 and {len(t) for t in things} == {1 + int(share)}
