"""Public data sets of prompts are read by hub id; here from a local folder of the same name."""

import json
from pathlib import Path

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.config import PromptConfig
from tdmvid.data.items import read_items
from tdmvid.data.prompt_sets import HubSet, find_set
from tdmvid.data.prompts import read_prompts, read_training_prompts
from tdmvid.data.video import write_image

CAPTIONS = ["a red ring", "a blue\ncross", "a cyan square"]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """Make the folder me/captions, which `datasets` reads instead of a data set on the hub."""
    monkeypatch.chdir(tmp_path)
    Path("me/captions").mkdir(parents=True)
    lines = [json.dumps({"caption": caption, "score": 1.5}) for caption in CAPTIONS]
    Path("me/captions/train.jsonl").write_text("\n".join(lines))


def test_a_set_is_streamed_up_to_the_limit(monkeypatch):
    import datasets

    seen, load = [], datasets.load_dataset

    def streamed(*args, streaming, **options):
        assert streaming
        table = load(*args, streaming=True, **options)
        return table.map(lambda row: (seen.append(1), row)[1])

    monkeypatch.setattr(datasets, "load_dataset", streamed)
    file = Path("me/captions/train.jsonl")
    file.write_text("\n".join([file.read_text()] * 500))
    config = PromptConfig(path="me/captions", column="caption", limit=2)
    assert read_training_prompts(config) == CAPTIONS[:2]
    assert 2 <= len(seen) < 100


def test_a_set_without_a_limit_is_read_whole():
    assert read_prompts("me/captions", column="caption") == CAPTIONS


def test_a_part_that_is_not_there_is_named():
    with refused("me/captions", "prompts.split='test'"):
        read_prompts("me/captions", column="caption", part=HubSet(split="test"))


def test_a_missing_column_is_named_with_those_that_are_there():
    with refused("'prompt'", "caption, score", "prompts.column"):
        read_prompts("me/captions")


def test_what_is_no_text_is_named_with_its_row():
    with refused("me/captions, row 1", "1.5"):
        read_prompts("me/captions", column="score")


def test_a_hub_that_cannot_be_reached_is_named_with_a_way_around(monkeypatch):
    import datasets

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with refused("someone/prompts", "ConnectionError", "tdmvid prompts someone/prompts"):
        read_prompts("someone/prompts")


def test_a_network_that_fails_on_the_way_is_named(monkeypatch):
    import datasets

    class Failing:
        column_names = ("prompt",)

        def select_columns(self, names):
            yield {"prompt": "a red ring"}
            raise TimeoutError("read timed out")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Failing())
    with refused("someone/prompts", "TimeoutError"):
        read_prompts("someone/prompts")


@pytest.mark.parametrize("name", ["mine.txt", "folder/mine.txt", "../set/x", "/a/b", "a/b/c", "x"])
def test_what_looks_like_a_file_is_no_hub_id(name):
    assert find_set(Path(name), HubSet()) is None


def test_a_file_of_that_name_is_read_as_one():
    Path("videos:5").write_text("a red ring")
    with refused("videos:5"):
        read_prompts("videos:5")


PARTS = (("split", "test"), ("subset", "en"), ("revision", "main"))


@pytest.mark.parametrize("name, value", PARTS)
@pytest.mark.parametrize("path", ["mine.txt", "videos", "videos:50", "a/b/c", "clips/mine.csv"])
def test_a_part_of_what_is_no_hub_id_is_refused_in_a_config(path, name, value):
    with refused(f"prompts.{name}='{value}'", path):
        PromptConfig(path=path, **{name: value})
    for same in ("me/captions", "./me/captions/"):
        assert PromptConfig(path=same, **{name: value})


@pytest.mark.parametrize("name, value", PARTS)
def test_a_part_of_what_is_no_data_set_is_refused_when_it_is_read(name, value, capsys):
    Path("mine.txt").write_text("a red ring")
    Path("me/clips").mkdir()
    Path("me/clips/a.txt").write_text("a cat")
    write_image(Path("me/clips/a.png"), torch.zeros(3, 8, 8))
    for path in ("mine.txt", "videos", "videos:5", "me/clips"):
        with refused(f"prompts.{name}='{value}'", f"--{name}", path.rpartition("/")[2]):
            read_prompts(path, part=HubSet(**{name: value}))
    for images in (False, True):
        with refused(f"prompts.{name}='{value}'", "me/clips"):
            read_items(PromptConfig(path="me/clips", **{name: value}), images=images)
    with refused(f"prompts.{name}='{value}'", error=SystemExit):
        main(["prompts", "videos:5", f"--{name}", value])


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_the_command_writes_a_file_that_a_run_reads(suffix, capsys):
    main(["prompts", "me/captions", "--column", "caption", "--out", f"new/mine{suffix}"])
    assert "3 prompts" in capsys.readouterr().out
    expected = CAPTIONS if suffix == ".jsonl" else [c.replace("\n", " ") for c in CAPTIONS]
    assert read_prompts(f"new/mine{suffix}") == expected


def test_the_command_prints_generated_captions(capsys):
    main(["prompts", "videos:30", "--limit", "3"])
    assert capsys.readouterr().out.splitlines() == read_prompts("videos:3")


@pytest.mark.parametrize("option", [["--limit", "-1"], ["--out", "mine.docx"]])
def test_a_wrong_option_of_the_command_is_named(option):
    with refused(*option[1:], error=SystemExit):
        main(["prompts", "videos:3", *option])


@pytest.mark.parametrize("out", ["mine.txt", "./mine.txt", "link.txt"])
def test_a_list_of_prompts_is_not_written_over_its_source(out):
    Path("mine.txt").write_text("a\nb\nc\n")
    Path("link.txt").symlink_to("mine.txt")
    with refused("--out", Path(out), error=SystemExit):
        main(["prompts", "mine.txt", "--limit", "2", "--out", out])
    assert Path("mine.txt").read_text() == "a\nb\nc\n"


def test_a_list_of_prompts_does_not_replace_other_prompts():
    Path("mine.txt").write_text("written by hand\n")
    with refused("--out", "mine.txt", error=SystemExit):
        main(["prompts", "videos:3", "--out", "mine.txt"])
    assert Path("mine.txt").read_text() == "written by hand\n"
    for _ in range(2):  # the same command again
        main(["prompts", "videos:3", "--out", "new.txt"])
    assert len(Path("new.txt").read_text().splitlines()) == 3
