"""Commands refuse an option that they would ignore before they load a model."""

from argparse import Namespace

import pytest
from refusals import refused

from tdmvid.cli import sample
from tdmvid.cli.main import main


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    """A file of lines and a table, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a red ring\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a red ring", "text": "a blue ring"}\n')
    (tmp_path / "scheduler_config.json").write_text("{}")  # what a student without facts needs


SAMPLE = ["sample", "--out", "x", "--model", "nowhere", "--prompts"]
CASES = [
    ([*SAMPLE, "a.txt", "--column", "prompt"], ["--column='prompt'", "a.txt"]),
    ([*SAMPLE, "a.txt", "--image-column", "y"], ["--image-column='y'", "a.txt"]),
    (
        [*SAMPLE, "a.jsonl", "--images", "z", "--image-column", "y"],
        ["--image-column='y'", "--images"],
    ),
    ([*SAMPLE, "a.txt", "--size", "1x64x64", "--fps", "8"], ["--fps=8", "images"]),
    (
        ["playground", "--lora", ".", "--model", "nowhere", "--size", "1x64x64", "--fps", "8"],
        ["--fps=8", "images"],
    ),
    (["prompts", "a.txt", "--column", "text"], ["--column='text'", "a.txt"]),
    (["prompts", "a.txt", "--skip-empty"], ["--skip-empty", "a.txt"]),
    (["prompts", "a.jsonl", "--split", "train"], ["--split='train'", "a.jsonl", "table"]),
    (["prompts", "videos:3", "--revision", "main"], ["--revision", "'main'", "videos:3"]),
]


@pytest.mark.parametrize("words, facts", CASES, ids=lambda value: value[-2] if value else "")
def test_an_option_without_effect_is_refused(prompts, monkeypatch, words, facts):
    monkeypatch.setattr("tdmvid.sampling.playground.check_gradio", lambda: None)
    with refused("error", *facts, error=SystemExit):
        main(words)


def test_an_option_of_a_table_is_read(prompts, capsys):
    main(["prompts", "a.jsonl", "--column", "text", "--skip-empty"])
    assert capsys.readouterr().out == "a blue ring\n"


def test_a_column_of_images_is_refused_for_a_model_without_images(prompts):
    args = Namespace(
        prompts="a.jsonl", column="prompt", images=None, image_column="y", given={"image_column"}
    )
    with refused("--image-column='y'", "image"):
        sample._items(args, takes_images=False)
    args.given.clear()
    assert [item.prompt for item in sample._items(args, takes_images=False)] == ["a red ring"]
