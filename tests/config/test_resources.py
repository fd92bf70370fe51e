"""Configs, prompts and the embedded teacher are found by name; an existing file has precedence."""

import json
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.config import load_config
from tdmvid.config.resources import find_config, find_evaluation, find_model, find_prompts
from tdmvid.data.prompts import read_prompts
from tdmvid.shapes import PROMPTS, TEACHER

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Change to a folder that is not a clone of the repository."""
    monkeypatch.chdir(tmp_path)


def test_every_ready_config_is_found_by_its_name_and_so_are_its_prompts():
    paths = sorted((ROOT / "configs").glob("*.json"))
    assert len(paths) > 10
    for path in paths:
        assert find_config(path.name.removesuffix(".json")).samefile(path)
        assert read_prompts(load_config(path).prompts.path)


def test_every_evaluation_is_found_by_its_name_and_so_are_its_prompts():
    for path in (ROOT / "eval/configs").glob("*.json"):
        assert find_evaluation(path.stem).samefile(path)
        if prompts := json.loads(path.read_text()).get("prompts"):
            assert read_prompts(prompts)


def test_the_run_of_a_ready_config_has_its_name():
    assert load_config("cogvideox1.5_5b_4nfe").name == "cogvideox1.5_5b_4nfe"


def test_the_embedded_teacher_and_its_prompts_have_a_name():
    assert Path(find_model("shapes")).samefile(TEACHER)
    assert find_prompts("shapes").samefile(PROMPTS)


@pytest.mark.parametrize(
    "path", ["tdmvid/shapes/teacher", "/gone/site-packages/tdmvid/shapes/teacher"]
)
def test_the_embedded_teacher_is_found_by_its_path_on_another_machine(path):
    assert Path(find_model(path)).samefile(TEACHER)
    Path("tdmvid/shapes/teacher").mkdir(parents=True)  # what is here is used as it is
    assert find_model("tdmvid/shapes/teacher") == "tdmvid/shapes/teacher"
    assert find_model("mine/shapes/teacher") == "mine/shapes/teacher"


def test_an_existing_file_wins_over_a_name():
    for name in ("videos", "shapes_4nfe"):
        Path(name).write_text("{}")
    assert find_prompts("videos") == Path("videos")
    assert find_config("shapes_4nfe") == Path("shapes_4nfe")


def test_a_folder_of_that_name_that_is_no_pipeline_does_not_hide_the_teacher():
    Path("shapes").mkdir()
    assert Path(find_model("shapes")).samefile(TEACHER)


def test_an_unknown_config_is_refused_with_the_known_names():
    with refused("'cogvideox3'", "cogvideox2b_4nfe"):
        find_config("cogvideox3")
    with refused("'fid'", "vbench_cogvideox2b"):
        find_evaluation("fid")


def test_what_has_no_name_is_left_to_its_reader():
    assert find_prompts("mine.txt") == Path("mine.txt")
    assert find_model("THUDM/CogVideoX-2b") == "THUDM/CogVideoX-2b"
