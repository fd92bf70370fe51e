"""Several ranks make the same videos as one rank, each its share."""

from pathlib import Path

import pytest
from ranks import run_ranks

from tdmvid.data.video import read_video
from tdmvid.parallel import launch
from tdmvid.sampling import manifest as manifests
from tdmvid.sampling import sample as sampling
from tdmvid.sampling.shots import plan_shots
from tdmvid.sampling.student import load_for_sampling

PROMPTS = ["a red circle moves left", "a blue square", "a red square"]


def sample(model, out, cache, hidden="", other=()):
    """Run launch/sample.py in a rank; return the files that this rank wrote, and those in the
    manifest.

    hidden: file that only the first rank sees, as on a slow network file system; other: prompts
    that only the second rank uses.
    """
    world = launch.start("auto")
    if hidden and not world.primary:
        read = manifests.read_manifest
        manifests.read_manifest = lambda out: [
            entry for entry in read(out) if entry["file"] != hidden
        ]
    backbone = load_for_sampling(world, model=model, size="9x32x32")
    wrote, write = [], sampling._write
    sampling._write = lambda out, shots, *rest: (
        wrote.extend(shot.file for shot in shots),
        write(out, shots, *rest),
    )
    shots = plan_shots([*PROMPTS, *(() if world.primary else other)], (0, 1), frames=9)
    manifest = sampling.sample_videos(
        Path(out),
        shots,
        backbone=backbone,
        sampler=sampling.Sampler(steps=2, cfg=1.0),
        world=world,
        batch=2,
        cache=Path(cache),
    )
    launch.finish()
    return wrote, [entry["file"] for entry in manifest]


@pytest.mark.slow
def test_two_ranks_share_the_list_and_make_the_videos_of_one(tiny_cogvideox, tmp_path):
    model = str(tiny_cogvideox("sincos"))
    (first, manifest), (second, other) = run_ranks(
        2, sample, model, str(tmp_path / "two"), str(tmp_path / "cache")
    )
    assert len(first) == len(second) == 3 and manifest == other == sorted(first + second)
    assert not list((tmp_path / "two").glob(".*"))  # the manifests of the ranks were merged
    run_ranks(1, sample, model, str(tmp_path / "one"), str(tmp_path / "cache"))
    for name in manifest:
        one, two = (read_video(tmp_path / folder / name) for folder in ("one", "two"))
        assert (one - two).abs().mean() < 0.01 < one.std()


@pytest.mark.slow
def test_ranks_that_see_another_folder_share_one_list(tiny_cogvideox, tmp_path):
    words = str(tiny_cogvideox("sincos")), str(tmp_path / "out"), str(tmp_path / "cache")
    ((_, manifest),) = run_ranks(1, sample, *words)
    for file in manifest[1:4]:
        (tmp_path / "out" / file).unlink()
    (first, there), (second, _) = run_ranks(2, sample, *words, manifest[0])
    assert sorted(first + second) == manifest[1:4] and there == manifest


def test_ranks_with_other_prompts_are_refused_before_anything_is_made(tiny_cogvideox, tmp_path):
    """Otherwise each rank would use its share of another list, and videos would be missing."""
    out = tmp_path / "out"
    with pytest.raises(
        AssertionError, match="rank 1 was given another list of prompts than rank 0"
    ):
        run_ranks(
            2,
            sample,
            str(tiny_cogvideox("sincos")),
            str(out),
            str(tmp_path / "cache"),
            "",
            ["a cat"],
        )
    assert not out.exists()


def _sampled_while_one_breaks():
    """Return the result on each rank, first with finite samples, then with samples of rank 0 that
    are not finite.
    """
    import torch

    from tdmvid.train import samples

    world, told = launch.start("deepspeed", 1), []
    part = samples.Part(torch.ones(1, 2), None, range(1))
    for broken in (None, 0):

        def sample_student(run, z, cond, broken=broken):
            if world.rank == broken:
                raise samples.NotFinite("here")
            return z

        samples.sample_student = sample_student
        try:
            told.append(tuple(samples._sample_together(None, part).shape))
        except samples.NotFinite as error:
            told.append(str(error))
    launch.finish()
    return told


@pytest.mark.slow
def test_all_ranks_end_together_if_the_samples_of_one_are_not_finite():
    broken, other = run_ranks(2, _sampled_while_one_breaks)
    assert broken == [(1, 2), "here"]
    assert other[0] == (1, 2) and "another rank" in other[1]
