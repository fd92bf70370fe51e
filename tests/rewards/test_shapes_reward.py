"""The comparison of rewarded and plain students: closed forms, and refusals of mixed results."""

import dataclasses
import json

import pytest
import reward_samplers
import shapes_reward
import torch
from families import BUILDERS
from refusals import refused
from rewarded_videos import Judged, compare_frechet, judged, matched, pool, ratio_of_diversity

from ablations.rewards import tilted
from tdmvid.config.embedded import TEACHER
from tdmvid.shapes.score import evaluation_set, number_captions

CAPTIONS, SEEDS = 60, 10


def made(*, scale=1.0, share=0.5, seed=0, shift=0.0):
    """Videos without pixels: normal features, and random videos of the subset."""
    generator = torch.Generator().manual_seed(seed)
    count = CAPTIONS * SEEDS
    group = torch.arange(CAPTIONS).repeat_interleave(SEEDS)
    names = [*shapes_reward.SHARES, "flicker"]
    measured = {name: torch.rand(count, generator=generator) < share for name in names}
    measured["features"] = scale * torch.randn(count, 14, generator=generator) + shift
    return Judged(torch.zeros(count, 3, 9, 2, 2), measured, group, group % 3 == 0)


def test_evaluations_of_several_seeds_are_one_with_all_their_videos():
    """A caption of both has one number."""
    things = [evaluation_set(8, 2, seed, pair_share=0.5) for seed in (1, 2)]
    parts = []
    for own in things:
        measured = {"clear": torch.arange(len(own)) % 2 == 0}
        videos = torch.zeros(len(own), 3, 1, 2, 2)
        pairs = torch.tensor([len(t) == 2 for t in own])
        parts.append((Judged(videos, measured, number_captions(own), pairs), own))
    whole = pool(parts)
    assert len(whole.videos) == len(whole.measured["clear"]) == 32
    assert torch.equal(whole.group, number_captions([*things[0], *things[1]]))
    assert int(whole.group.max()) + 1 == len({*things[0], *things[1]}) < 16
    assert torch.equal(whole.pairs[:16], parts[0][0].pairs)
    assert pool(parts[:1]).group.tolist() == parts[0][0].group.tolist()


def test_the_diversity_of_scaled_features_is_scaled():
    plain, wide = made(), made(scale=1.5)
    for subset in ("", "clear"):
        ratio = ratio_of_diversity(wide, plain, subset)
        assert ratio.value == pytest.approx(1.5)
        assert ratio.low <= 1.5 <= ratio.high


def test_a_subset_without_two_videos_of_a_caption_is_reported():
    lone = made(share=0)
    with pytest.raises(ValueError, match="clear"):
        ratio_of_diversity(lone, made(), "clear")


def test_ground_truth_is_chosen_in_the_share_of_two_objects():
    truth = made(seed=1)
    marked = truth.measured["features"].clone()
    marked[:, 0] = truth.pairs
    truth = dataclasses.replace(truth, measured=truth.measured | {"features": marked})
    for share in (0.0, 0.1, 0.5, 1.0):
        assert matched(truth, "clear", share)[:, 0].mean() == pytest.approx(share, abs=0.01)


def test_ground_truth_of_two_objects_alone_is_used_whole():
    truth = made(seed=1)
    truth = dataclasses.replace(truth, pairs=torch.ones_like(truth.pairs))
    assert len(matched(truth, "", 1.0)) == CAPTIONS * SEEDS


def test_the_rewarded_measure_is_the_first_column_with_its_interval():
    rows = {
        "student": {
            k: dataclasses.asdict(v) for k, v in shapes_reward.row_of(made(), "all").items()
        }
    }
    head, _, row = shapes_reward.describe_rows(rows, "all").split("\n")
    assert head.startswith("| | correct | one object | two objects | correct, inside and apart |")
    assert "[" in row.split("|")[2] and "[" not in row.split("|")[3]


def test_a_shifted_student_is_farther_from_ground_truth_and_an_equal_one_is_not():
    truth = made(seed=1)
    shifted = compare_frechet(made(seed=2, shift=0.5), made(seed=3, share=0.3), truth, "clear")
    assert shifted["count"] == made(seed=3, share=0.3).measured["clear"].sum()
    assert shifted["difference"].value == pytest.approx(14 * 0.25, rel=0.2)
    assert shifted["difference"].low > 0
    equal = compare_frechet(made(seed=2), made(seed=3), truth, "clear")
    assert equal["difference"].low < 0 < equal["difference"].high


def test_a_pair_shows_the_share_the_formula_and_the_gap_to_the_teacher():
    found = {"ground truth": made(seed=1), "teacher": made(seed=4), "plain": made(seed=2)}
    found["rewarded"] = made(seed=3, share=0.9)
    pair = shapes_reward.compare_pair(found, "rewarded", "plain", 2.0, "clear")
    share, plain = (found[name].measured["clear"].double().mean() for name in ("rewarded", "plain"))
    assert pair["share"] == pytest.approx(share) and pair["plain share"] == pytest.approx(plain)
    assert pair["expected share"] == pytest.approx(tilted(float(plain), 2.0))
    above = share - found["teacher"].measured["clear"].double().mean()
    assert pair["above teacher"]["value"] == pytest.approx(above)
    assert pair["above plain"]["value"] == pytest.approx(share - plain)
    for name in ("plain", "teacher"):
        here = pair[f"above {name}, these captions"]
        assert here["value"] == pytest.approx(pair[f"above {name}"]["value"])
        assert here["low"] < here["value"] < here["high"]
    unrewarded = shapes_reward.compare_pair(found, "plain", "teacher", None, "clear")
    assert not {"arriving", "expected share"} & unrewarded.keys()
    table = shapes_reward.describe_pairs([pair, unrewarded]).split("\n")
    assert len({line.count("|") for line in table}) == 1, "every row has all columns"
    rows = {name: shapes_reward.row_of(one, "clear") for name, one in found.items()}
    assert rows["rewarded"]["clear"].value == pytest.approx(share)


def test_the_gap_is_the_difference_of_the_shares_if_captions_have_unequal_numbers_of_videos():
    ours, theirs = made(seed=2, share=0.9), made(seed=3)
    group = torch.arange(CAPTIONS * SEEDS).clamp(max=40) // 4  # one caption has most videos
    ours, theirs = (dataclasses.replace(one, group=group) for one in (ours, theirs))
    gap = shapes_reward.share_above(ours, theirs, "clear")
    shares = [one.measured["clear"].double().mean().item() for one in (ours, theirs)]
    assert gap.value == pytest.approx(shares[0] - shares[1])


def test_captions_that_differ_widen_the_interval_over_captions_alone():
    """A reward that arrives for half of the captions: with new noise it does so again."""
    plain, rewarded = made(share=0), made(share=0)
    arrives = rewarded.group % 2 == 0
    rewarded.measured["clear"] = arrives.clone()
    rewarded.measured["clear"][0] = False  # a caption whose videos differ
    over = shapes_reward.share_above(rewarded, plain, "clear")
    here = shapes_reward.share_above_here(rewarded, plain, "clear")
    assert over.value == pytest.approx(here.value) and here.low < here.value < here.high
    assert here.high - here.low < 0.01 < 0.2 < over.high - over.low


def test_a_reward_that_all_videos_have_can_be_compared():
    found = {"ground truth": made(seed=1), "plain": made(seed=2), "rewarded": made(seed=3, share=2)}
    assert found["rewarded"].measured["clear"].all()
    pair = shapes_reward.compare_pair(found, "rewarded", "plain", 2.0, "clear")
    assert pair["share"] == 1 and 1 < pair["arriving"] < 10


def test_stored_videos_of_another_student_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "plain.safetensors"
    save_file({"videos": torch.zeros(1)}, path, metadata={"facts": json.dumps({"weights": "a"})})
    with pytest.raises(ValueError, match=r"plain\.safetensors .*weights.*delete it"):
        judged(path, {"weights": "b"}, [], None, None)


def test_a_sampler_needs_a_name_and_a_folder(tmp_path):
    for text in ("runs/plain", "teacher=runs/x", "truth=runs/x", "a:b=runs/x", "a/b=runs/x"):
        with refused(f"--samplers {text!r}"):
            reward_samplers.read_sampler(text)
    assert reward_samplers.read_sampler("teacher").nfe == 100
    with refused(f"--samplers 'a={tmp_path / 'b'}'", "folder"):
        reward_samplers.read_sampler(f"a={tmp_path / 'b'}")
    assert reward_samplers.read_sampler(f"a={tmp_path}").nfe == 4


def students(folder, **bases):
    """Write export.json files of 2-step students, and return samplers of them."""
    for name, base in bases.items():
        (folder / name).mkdir()
        facts = {"steps": 2, "model": {"path": str(base), "dtype": "bfloat16"}}
        (folder / name / "export.json").write_text(json.dumps(facts))
    return reward_samplers.read_samplers([f"{name}={folder / name}" for name in bases]).values()


def test_students_are_sampled_on_their_own_base_in_their_own_steps(tmp_path, tiny_cogvideox):
    own = tiny_cogvideox("sincos")
    (student,) = students(tmp_path, a=own)
    assert student.steps == 2
    backbone = reward_samplers.load_base([student], None)
    assert (backbone.config.path, backbone.config.dtype) == (str(own), "float32")
    embedded = reward_samplers.load_base([], None)
    assert embedded.config.path == str(TEACHER)
    assert reward_samplers.load_base([student], "shapes").config.path == str(TEACHER)


def test_students_of_two_bases_are_not_compared(tmp_path, tiny_cogvideox):
    samplers = students(tmp_path, a=TEACHER, b="shapes", c=tiny_cogvideox("sincos"))
    with refused("--samplers 'c'", "'a'", "--model"):
        reward_samplers.load_base(samplers, None)


def test_a_base_that_starts_from_an_image_is_refused(tmp_path):
    base = tmp_path / "base"
    BUILDERS["CogVideoXImageToVideoPipeline"].build("ofs").save_pretrained(base)
    with refused("--samplers", str(base), "text-to-video"):
        reward_samplers.load_base(students(tmp_path, a=base), None)


@pytest.mark.parametrize(
    "options, facts",
    [
        (["--shown", "b", "--picture", "x.png"], ["--shown 'b'", "--samplers", "'teacher', 'a'"]),
        (["--pairs", "a:b"], ["--pairs 'b'", "--samplers", "'teacher', 'a'"]),
        (["--pairs", "a"], ["--pairs 'a'", "REWARDED:PLAIN"]),
        (["--samplers", "a=.", "a=.."], ["--samplers 'a=..'", "twice"]),
        (["--samplers", "a=nowhere"], ["--samplers 'a=nowhere'"]),
        (["--shown", "a"], ["--shown=['a']", "--picture"]),
        (["--pictured", "2"], ["--pictured=2", "--picture"]),
        (["--seeds", "0"], ["--seeds=0"]),
        (["--seed", "1", str(2**63)], [f"--seed=[1, {2**63}]"]),
        (["--seed", "1", "1"], ["--seed 1 1"]),
        (["--seeds", "1"], ["--seeds 1", "2"]),
    ],
    ids=lambda value: value[0],
)
def test_a_wrong_option_is_refused_before_anything_is_sampled(
    monkeypatch, tmp_path, options, facts
):
    words = ["--judge", "judge", "--out", str(tmp_path / "out"), "--samplers", "teacher", "a=."]
    monkeypatch.setattr("sys.argv", ["shapes_reward.py", *words, *options])
    monkeypatch.setattr(shapes_reward, "load_second_judge", lambda path: None)
    monkeypatch.setattr(shapes_reward, "judged", lambda *_: pytest.fail("it samples"))
    with refused(*facts):
        shapes_reward.main()
    assert not (tmp_path / "out").exists()
