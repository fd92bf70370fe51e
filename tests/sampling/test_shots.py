"""File names and noise of the videos to sample."""

import pytest
import torch
from refusals import refused

from tdmvid.sampling.shots import noise, plan_shots, read_seeds

PROMPTS = ["a red circle moves left", "a blue square", "a red square"]


def test_every_prompt_and_seed_has_its_own_noise():
    z = torch.stack([noise(prompt, seed, (500,)) for prompt in PROMPTS for seed in (0, 1)])
    assert torch.equal(z[1], noise(PROMPTS[0], 1, (500,)))
    assert (torch.corrcoef(z) - torch.eye(6)).abs().max() < 0.2 and abs(z.std() - 1) < 0.05


@pytest.mark.parametrize(
    "naming, names",
    [
        ("index", ["00000_a-man-s-2nd-try-7.mp4", "00002_prompt-7.mp4"]),
        ("prompt", ["A man's 2nd try!-7.mp4", "猫-7.mp4"]),
    ],
)
def test_files_are_named_by_place_or_by_prompt_and_doubles_once(naming, names):
    assert [
        shot.file
        for shot in plan_shots(["A man's 2nd try!"] * 2 + ["猫"], [7, 7], frames=9, naming=naming)
    ] == names


def test_an_image_is_a_png():
    assert plan_shots(["a cat"], [0], frames=1)[0].file == "00000_a-cat-0.png"


@pytest.mark.parametrize("prompt", ["up/down", "x" * 250])
def test_a_prompt_that_cannot_name_a_file_is_refused(prompt):
    with refused("prompt", "--names index"):
        plan_shots([prompt], [0], frames=9, naming="prompt")


def test_seeds_are_whole_numbers():
    assert read_seeds("0,1,12") == [0, 1, 12]
    with refused("seeds='0;1'"):
        read_seeds("0;1")
