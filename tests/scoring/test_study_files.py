"""What `tdmvid study` writes replaces nothing that votes need."""

import json

import pytest
from refusals import refused

from tdmvid.cli.main import main


def make(page, folders, *options):
    a, b = map(str, folders)
    main(["study", "make", "--a", a, "--b", b, "--out", str(page), *options])


@pytest.mark.parametrize("lost", [None, ".html", ".key.json"])
def test_a_study_does_not_replace_another(folders, tmp_path, lost):
    page, key = tmp_path / "s.html", tmp_path / "s.key.json"
    make(page, folders)
    study = json.loads(key.read_text())["study"]
    if lost:
        page.with_suffix(lost).unlink()
    before = {path: path.read_bytes() for path in (page, key) if path.exists()}
    named = page if lost == ".key.json" else key
    with refused(named, f"study {study}", "--out", error=SystemExit):
        make(page, folders, "--pairs", "1")
    assert {path: path.read_bytes() for path in (page, key) if path.exists()} == before


def test_the_same_study_may_be_written_again(folders, tmp_path):
    page = tmp_path / "s.html"
    make(page, folders)
    study = json.loads((tmp_path / "s.key.json").read_text())["study"]
    make(page, folders, "--name-a", "new", "--question", "Which?")
    key = json.loads((tmp_path / "s.key.json").read_text())
    assert (key["study"], key["A"]) == (study, "new") and "Which?" in page.read_text()


def test_a_sample_that_is_missing_is_named_with_a_remedy(folders, tmp_path):
    lost = next(path for path in folders[0].iterdir() if path.suffix == ".png")
    lost.unlink()
    with refused(lost, "sample it again", error=SystemExit):
        make(tmp_path / "s.html", folders)


@pytest.mark.parametrize("name", ["s.html", "s.key.json"])
def test_a_study_does_not_replace_another_file(folders, tmp_path, name):
    (tmp_path / name).write_text("my notes")
    with refused(tmp_path / name, "--out", error=SystemExit):
        make(tmp_path / "s.html", folders)
    assert (tmp_path / name).read_text() == "my notes"


@pytest.mark.parametrize("command", [["tally"], ["fit", "--a", "a", "--b", "b", "--out", "r"]])
def test_missing_votes_are_answered_with_what_writes_them(folders, tmp_path, command):
    make(tmp_path / "s.html", folders)
    assert ">Save votes</button>" in (tmp_path / "s.html").read_text()
    key = str(tmp_path / "s.key.json")
    with refused("votes-*.json", '"Save votes"', error=SystemExit):
        main(["study", *command, "--key", key, "votes-*.json"])
    with refused("none.json", "tdmvid study make", error=SystemExit):
        main(["study", *command, "--key", "none.json", key])


@pytest.mark.parametrize(
    "option, name",
    [("--json", "votes.json"), ("--json", "s.key.json"), ("--pairs", "votes.json")],
)
def test_results_do_not_replace_votes_or_key(folders, tmp_path, option, name):
    make(tmp_path / "s.html", folders)
    (tmp_path / "votes.json").write_text("{}")
    before = (tmp_path / name).read_bytes()
    a, b = map(str, folders)
    of_fit = ["fit", "--a", a, "--b", b, "--out", str(tmp_path / "r.safetensors")]
    words = ["--key", str(tmp_path / "s.key.json"), option, str(tmp_path / name)]
    words.append(str(tmp_path / "votes.json"))
    with refused(option, tmp_path / name, error=SystemExit):
        main(["study", *(["tally"] if option == "--json" else of_fit), *words])
    assert (tmp_path / name).read_bytes() == before
