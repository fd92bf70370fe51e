"""What a sampler is loaded from: a student that names its base, or what is given."""

import pytest
import torch
from refusals import refused

from tdmvid.parallel.launch import World
from tdmvid.sampling.student import load_for_sampling

ONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "given, facts",
    [
        ({}, ("model",)),
        ({"model": "x/y"}, ("size",)),
        ({"model": "x/y", "size": "512"}, ("size='512'", "49x480x720")),
        ({"student": "/nowhere"}, ("/nowhere",)),
    ],
)
def test_what_is_missing_is_named(given, facts):
    with refused(*facts):
        load_for_sampling(ONE, **given)


@pytest.mark.parametrize("name", ["lora", "student"])
def test_a_run_s_folder_is_told_from_its_student_s(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "export.json").write_text("{}")
    with refused(tmp_path, tmp_path / name):
        load_for_sampling(ONE, student=tmp_path)
