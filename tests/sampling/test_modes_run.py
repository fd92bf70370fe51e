"""`tdmvid score modes` samples students and their teacher, and compares what it was asked for."""

import json
import shutil

from tdmvid.cli.main import main


def modes(student, out, count):
    options = ["--prompt", "a red square", "--count", count, "--neighbours", 1]
    options += ["--steps", 2, "--cfg", 2, "--batch", 4, "--out", out]
    main(["score", "modes", *map(str, [student, *options])])
    return json.loads((out / "modes.json").read_text())["folders"]


def test_a_second_call_with_fewer_seeds_finds_what_a_first_one_finds(student, tmp_path):
    fresh = modes(student, tmp_path / "out", 3)
    assert [one["samples"] for one in modes(student, tmp_path / "out", 4)] == [4, 4]
    for folder in (tmp_path / "out").glob("*/"):  # of another prompt
        shutil.copy(min(folder.glob("*.mp4")), folder / "00001_a-blue-ring-0.mp4")
    assert modes(student, tmp_path / "out", 3) == fresh
