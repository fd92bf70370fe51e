"""VBench's arithmetic gives the published totals of models, and its results are checked."""

import json

import pytest
import torch
from refusals import refused

from tdmvid.scoring.intervals import Measure
from tdmvid.scoring.vbench_published import PUBLISHED
from tdmvid.scoring.vbench_scores import (
    DIMENSIONS,
    Bootstrap,
    check_dimensions,
    read_scores,
    totals,
)
from tdmvid.scoring.vbench_verify import check_totals


def shares(**changes):
    """The scores of CogVideoX-2B as shares, with changes in per cent."""
    return {name: value / 100 for name, value in (PUBLISHED[0].scores | changes).items()}


def test_the_totals_are_the_published_ones():
    answers = list(check_totals())
    assert answers and all(answer.right for answer in answers)


def test_a_figure_that_one_paper_prints_does_not_give_its_own_total():
    assert round(100 * totals(shares(motion_smoothness=99.02))["total"], 2) != 80.91


@pytest.mark.parametrize("missing", DIMENSIONS)
def test_without_any_one_dimension_there_is_no_total(missing):
    part = totals({name: score for name, score in shares().items() if name != missing})
    assert "total" not in part and DIMENSIONS[missing].kind not in part and len(part) == 1


def test_what_prompts_of_your_own_cannot_be_scored_on_is_refused():
    check_dimensions(["temporal_flickering", "human_action"], custom=True)
    with refused("'colour'"):
        check_dimensions(["colour"], custom=False)
    with refused("'color'"):
        check_dimensions(["color"], custom=True)


def results(tmp_path, dimension="temporal_flickering", stated=0.8, **videos):
    path = tmp_path / "scores_eval_results.json"
    path.write_text(
        json.dumps(
            {
                dimension: [
                    stated,
                    [{"video_path": f"/x/{k}.mp4", "video_results": v} for k, v in videos.items()],
                ]
            }
        )
    )
    return path


def test_color_is_averaged_over_the_videos_that_show_the_object_and_paired_over_prompts_of_both(
    tmp_path,
):
    path = tmp_path / "scores.json"
    path.write_text(
        json.dumps(
            {
                "color": [
                    0.75,
                    [
                        {"video_path": "v/a.mp4", "video_results": 0.5},
                        {"video_path": "v/b.mp4", "video_results": 1.0},
                    ],
                ]
            }
        )
    )
    ours = read_scores(path, {"color": ["a.mp4", "b.mp4", "c.mp4"]})
    assert ours == {"color": {"a.mp4": 0.5, "b.mp4": 1.0}}
    prompts, color = {f"{name}.mp4": name for name in "abc"}, frozenset({"color"})
    bootstrap = Bootstrap(prompts, dict.fromkeys("abc", color))
    assert (
        bootstrap.differences(ours, {"color": {"b.mp4": 0.25, "c.mp4": 0.0}})["color"].value == 0.75
    )


def test_scores_are_read_by_video(tmp_path):
    path = results(tmp_path, a=0.7, b=0.9)
    assert read_scores(path, {"temporal_flickering": ["a.mp4", "b.mp4"]}) == {
        "temporal_flickering": {"a.mp4": 0.7, "b.mp4": 0.9}
    }


def test_the_clips_of_a_long_video_average_to_its_score(tmp_path):
    path = tmp_path / "r.json"
    clips = {"a_000": 0.5, "a_001": 0.7, "b_000": 0.9}
    entries = [
        {"video_path": f"/x/split_clip/{name[0]}/{name}.mp4", "video_results": value}
        for name, value in clips.items()
    ]
    path.write_text(json.dumps({"motion_smoothness": [0.7, entries]}))
    assert read_scores(path, {"motion_smoothness": ["a.mp4", "b.mp4"]})[
        "motion_smoothness"
    ] == pytest.approx({"a.mp4": 0.6, "b.mp4": 0.9})


def test_single_videos_of_imaging_quality_are_in_per_cent(tmp_path):
    path = results(tmp_path, "imaging_quality", 0.6, a=50.0, b=70.0)
    assert read_scores(path, {"imaging_quality": ["a.mp4", "b.mp4"]})["imaging_quality"] == {
        "a.mp4": 0.5,
        "b.mp4": 0.7,
    }


@pytest.mark.parametrize(
    "stated, videos, facts",
    [
        (0.8, {"a": 0.7}, ("1", "2", "'b.mp4'")),
        (0.8, {"a": 0.7, "b": float("nan")}, ("'b.mp4'", "nan")),
        (0.9, {"a": 0.7, "b": 0.9}, ("0.90000", "0.80000")),
    ],
)
def test_results_that_do_not_add_up_are_refused(tmp_path, stated, videos, facts):
    with refused(*facts):
        read_scores(
            results(tmp_path, stated=stated, **videos), {"temporal_flickering": ["a.mp4", "b.mp4"]}
        )


def test_a_dimension_that_was_not_reached_is_refused(tmp_path):
    with refused("scene"):
        read_scores(results(tmp_path, a=0.8), {"scene": ["a.mp4"]})


def two_dimensions(prompts=40, seeds=3):
    """Scores of samplers that share the difficulty of prompts and differ by 0.01 in one
    dimension.
    """
    files = {f"p{i}-{seed}.mp4": f"p{i}" for i in range(prompts) for seed in range(seeds)}
    names = {f"p{i}": frozenset({"scene"} if i % 4 == 0 else {"color"}) for i in range(prompts)}
    hard = 0.2 * torch.randn(prompts, generator=torch.Generator().manual_seed(0))

    def score(shift):
        return {
            name: {
                file: 0.5 + shift + hard[int(prompt[1:])].item()
                for file, prompt in files.items()
                if name in names[prompt]
            }
            for name in ("scene", "color")
        }

    return Bootstrap(files, names), score(0.0), score(0.01)


def test_a_difference_is_sharper_than_the_two_scores_it_is_of():
    boot, teacher, student = two_dimensions()
    difference = boot.differences(student, teacher)["color"]
    assert (
        difference.value == pytest.approx(0.01)
        and difference.low == pytest.approx(0.01)
        and difference.high == pytest.approx(0.01)
    )
    single = boot.measures(student)["color"]
    assert single.high - single.low > 0.05


def test_what_no_resample_changes_has_no_interval():
    """A dimension with one prompt, and prompts that are alone in their sets of dimensions."""
    names = {"a": {"scene"}, "b": {"color"}, "c": {"color"}, "d": {"color", "style"}}
    files = {f"{prompt}.mp4": prompt for prompt in names}
    boot = Bootstrap(files, {prompt: frozenset(found) for prompt, found in names.items()})
    scores = {
        "scene": {"a.mp4": 0.5},
        "color": {"b.mp4": 0.2, "c.mp4": 0.4, "d.mp4": 0.6},
        "style": {"d.mp4": 0.1},
    }
    assert {name for name, found in boot.measures(scores).items() if found.interval} == {"color"}
    other = {name: dict.fromkeys(videos, 0.1) for name, videos in scores.items()}
    assert boot.differences(scores, other)["scene"] == Measure(0.4)
    alone = Bootstrap({"a.mp4": "a", "d.mp4": "d"}, {"a": frozenset({"x"}), "d": frozenset("y")})
    assert alone.measures({"color": {"a.mp4": 0.2, "d.mp4": 0.6}})["color"] == Measure(0.4)


def test_every_resample_keeps_the_number_of_prompts_of_each_dimension():
    boot, *_ = two_dimensions()
    scene = [i for i in range(40) if i % 4 == 0]
    assert (boot.weight[:, scene].sum(1) == 10).all() and (boot.weight.sum(1) == 40).all()


def test_a_coverage_of_95_per_cent():
    """The interval of the difference between noisy scores contains the truth about as often as it
    claims.
    """
    held, trials, prompts = 0, 200, 60
    files, names = (
        {f"{i}.mp4": str(i) for i in range(prompts)},
        {str(i): frozenset({"scene"}) for i in range(prompts)},
    )
    boot, generator = Bootstrap(files, names), torch.Generator().manual_seed(1)
    for _ in range(trials):
        a, b = torch.randn(2, prompts, generator=generator).tolist()
        measure = boot.differences({"scene": dict(zip(files, a))}, {"scene": dict(zip(files, b))})[
            "scene"
        ]
        held += measure.low <= 0 <= measure.high
    assert 0.89 <= held / trials <= 0.99


def test_two_sides_of_other_prompts_are_not_compared():
    boot, teacher, student = two_dimensions()
    for seed in range(3):
        del student["scene"][f"p0-{seed}.mp4"]
    with refused("scene"):
        boot.differences(student, teacher)


def test_a_dimension_without_a_shared_prompt_has_no_difference():
    files, names = (
        {f"{p}.mp4": p for p in "ab"},
        dict.fromkeys("ab", frozenset({"temporal_flickering", "scene"})),
    )
    sides = [
        {"temporal_flickering": {f"{static}.mp4": 0.9}, "scene": {"a.mp4": score, "b.mp4": score}}
        for static, score in (("a", 0.5), ("b", 0.25))
    ]
    assert {
        name: measure.value for name, measure in Bootstrap(files, names).differences(*sides).items()
    } == {"scene": 0.25}


def test_flickering_is_compared_on_prompts_of_which_both_have_static_videos():
    files, names = (
        {f"{p}-0.mp4": p for p in "abc"},
        dict.fromkeys("abc", frozenset({"temporal_flickering"})),
    )
    ours, theirs = {"a-0.mp4": 0.9, "b-0.mp4": 0.8}, {"b-0.mp4": 0.7, "c-0.mp4": 0.1}
    measure = Bootstrap(files, names).differences(
        {"temporal_flickering": ours}, {"temporal_flickering": theirs}
    )["temporal_flickering"]
    assert measure.value == pytest.approx(0.1)
