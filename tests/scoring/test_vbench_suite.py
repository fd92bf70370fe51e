"""The videos that a run needs, and the checks of those that exist."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from refusals import refused

from tdmvid.config import ClipSize, VBenchConfig
from tdmvid.data.video import write_image, write_video
from tdmvid.scoring.vbench_suite import check_videos, files_of, load_suite, shots_of

SIZE = ClipSize(9, 32, 32, 8)
ROWS = [
    {"prompt_en": "a still lake", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a cat", "dimension": ["subject_consistency", "dynamic_degree"]},
    {
        "prompt_en": "a red cat",
        "dimension": ["color"],
        "auxiliary_info": {"color": {"color": "red"}},
    },
    {"prompt_en": "a dog", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "a cat", "dimension": ["overall_consistency"]},
]


@pytest.fixture
def full_info(tmp_path):
    (tmp_path / "info.json").write_text(json.dumps(ROWS))
    return tmp_path / "info.json"


def test_a_prompt_that_counts_twice_is_sampled_once(full_info):
    entries = load_suite(VBenchConfig(seeds=2, static_filter=False), full_info)
    files = [shot.file for shot in shots_of(entries, 49)]
    assert (
        len(entries) == 5
        and len(files) == len(set(files)) == 8
        and files[:2] == ["a still lake-0.mp4", "a still lake-1.mp4"]
    )


def test_the_filter_of_flickering_gets_its_many_videos_and_the_others_do_not(full_info):
    entries = load_suite(VBenchConfig(), full_info)
    assert [len(files_of(entry, 49)) for entry in entries] == [25, 5, 5, 5, 5]
    assert len(shots_of(entries, 49)) == 25 + 3 * 5


def test_augmented_prompts_are_sampled_and_the_original_names_the_file(full_info, tmp_path):
    (tmp_path / "long.txt").write_text(
        "\n".join(f"{row['prompt_en']}, in great detail" for row in ROWS)
    )
    config = VBenchConfig(seeds=1, static_filter=False, augmented=str(tmp_path / "long.txt"))
    shots = shots_of(load_suite(config, full_info), 49)
    assert {shot.file: shot.prompt for shot in shots}["a cat-0.mp4"] == "a cat, in great detail"
    (tmp_path / "long.txt").write_text("one")
    with refused("1", "5"):
        load_suite(config, full_info)
    (tmp_path / "long.txt").write_text("\n".join(["the same"] * len(ROWS)))
    with refused("'the same'"):
        load_suite(config, full_info)


def test_a_limit_takes_as_many_prompts_of_every_group(full_info):
    entries = load_suite(VBenchConfig(limit=1, dimensions=("dynamic_degree", "color")), full_info)
    assert [(entry.prompt, entry.dimensions) for entry in entries] == [
        ("a cat", ("dynamic_degree",)),
        ("a red cat", ("color",)),
    ]
    assert entries[1].auxiliary == {"color": {"color": "red"}}


def test_without_the_environment_its_prompts_are_missing():
    with refused("eval/setup_vbench.sh"):
        load_suite(VBenchConfig(), None)


@pytest.mark.parametrize(
    "frames, fps, long", [(49, 8, True), (33, 8, False), (81, 16, True), (79, 16, False)]
)
def test_five_seconds_make_a_long_video(frames, fps, long):
    assert VBenchConfig(video=ClipSize(frames, 480, 720, fps)).long == long


def test_an_underscore_in_a_long_video_s_prompt_is_refused(tmp_path):
    (tmp_path / "p.txt").write_text("a_cat")
    with refused(tmp_path / "p.txt", "underscore"):
        load_suite(VBenchConfig(prompts=str(tmp_path / "p.txt")))


LONG = "a lighthouse in a storm, " * 12


@pytest.mark.parametrize("suite", ["t2v", "i2v"])
@pytest.mark.parametrize("prompt", [LONG, "half day/half night"], ids=["long", "slash"])
def test_a_prompt_that_cannot_name_a_video_is_given_as_augmented(tmp_path, suite, prompt):
    write_image(tmp_path / "a.png", torch.zeros(3, 8, 8))

    def write(text):
        (tmp_path / "p.csv").write_text(f'prompt,image\n"a cat",a.png\n"{text}",a.png\n')

    write(prompt)
    config = VBenchConfig(suite=suite, prompts=str(tmp_path / "p.csv"), seeds=1)
    with refused("prompts", "VBench", "augmented"):
        load_suite(config)
    write("a short one")
    (tmp_path / "long.txt").write_text(f"a cat sleeps\n{prompt}\n")
    augmented = replace(config, augmented=str(tmp_path / "long.txt"))
    shots = {shot.file: shot.prompt for shot in shots_of(load_suite(augmented), 49)}
    assert shots == {"a cat-0.mp4": "a cat sleeps", "a short one-0.mp4": prompt.strip()}


@pytest.mark.parametrize("frames, most", [(49, 250), (9, 255)])
def test_the_clips_of_a_long_video_need_room_for_their_number(tmp_path, frames, most):
    path = tmp_path / "p.txt"
    config = VBenchConfig(prompts=str(path), seeds=1, video=ClipSize(frames, 32, 32, 8))
    path.write_text("x" * (most - len("-0.mp4")))
    load_suite(config)
    path.write_text("x" * (most - len("-0.mp4") + 1))
    with refused("prompts", f"at most {most} bytes"):
        load_suite(config)


@pytest.fixture
def videos(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in ("a-0", "a-1"):
        write_video(tmp_path / f"{name}.mp4", torch.rand(3, 9, 32, 32, generator=generator), fps=8)
    return tmp_path


def test_whole_videos_pass_and_are_told_apart(videos):
    digests = check_videos(videos, ["a-0.mp4", "a-1.mp4"], SIZE)
    assert len(set(digests.values())) == 2


def test_a_missing_video_is_an_error(videos):
    with refused("1", "3", "'b-0.mp4'"):
        check_videos(videos, ["a-0.mp4", "a-1.mp4", "b-0.mp4"], SIZE)


def test_the_same_video_under_two_seeds_is_an_error(videos):
    shutil.copy(videos / "a-0.mp4", videos / "a-1.mp4")
    with refused("'a-1.mp4'", "'a-0.mp4'"):
        check_videos(videos, ["a-0.mp4", "a-1.mp4"], SIZE)


@pytest.mark.parametrize(
    "size, facts",
    [
        (ClipSize(9, 32, 32, 16), ("8 fps", "16 fps")),
        (ClipSize(17, 32, 32, 8), ("9 frames", "17 frames")),
        (ClipSize(9, 32, 48, 8), ("32 x 32", "32 x 48")),
    ],
)
def test_another_rate_length_or_size_is_an_error(videos, size, facts):
    with refused(*facts):
        check_videos(videos, ["a-0.mp4"], size)


def test_a_cut_file_is_an_error(videos):
    (videos / "a-0.mp4").write_bytes((videos / "a-0.mp4").read_bytes()[:200])
    with refused("a-0.mp4"):
        check_videos(videos, ["a-0.mp4"], SIZE)
