"""Votes of a study become a reward."""

import json
import math
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file

from tdmvid.cli.main import main
from tdmvid.config import RewardConfig
from tdmvid.data.items import file_digest
from tdmvid.data.video import write_image, write_video
from tdmvid.rewards import Scorer
from tdmvid.rewards.votes import Head, Pair, fit_head, load_votes, save_head
from tdmvid.scoring.intervals import Measure
from tdmvid.shapes import world

COUNT = 20


def coloured(level, generator):
    """An image [3, H, W] whose saturation is the level."""
    grey = torch.rand(1, 12, 12, generator=generator) * 0.4 - 0.2
    colours = grey + level * torch.tensor([0.5, 0.0, -0.5]).view(3, 1, 1)
    return ((colours + 1) * 127.5).round() / 127.5 - 1  # as a file of 8 bits keeps them


@pytest.fixture
def study(tmp_path):
    """Two folders of images, a key, and the ballots of two people who like colours."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.rand(COUNT, 2, generator=generator)
    pairs = []
    for index, row in enumerate(levels.tolist()):
        for folder, level in zip("ab", row):
            write_image(tmp_path / folder / f"{index}.png", coloured(level, generator))
        pairs.append({"prompt": f"prompt {index}", "file": f"{index}.png"})
    key = {"study": "s", "A": "ours", "B": "theirs", "pairs": pairs}
    (tmp_path / "key.json").write_text(json.dumps(key))
    likes = {str(index): "A" if a > b else "B" for index, (a, b) in enumerate(levels.tolist())}
    for person, votes in (("p", likes), ("q", likes | {"0": "same"})):
        ballot = {"study": "s", "person": person, "votes": votes}
        (tmp_path / f"votes-{person}.json").write_text(json.dumps(ballot))
    return tmp_path


def fit(folder, *options):
    ballots = [str(folder / f"votes-{person}.json") for person in "pq"]
    paths = {"--key": "key.json", "--a": "a", "--b": "b", "--out": "head.safetensors"}
    given = [each for name, path in paths.items() for each in (name, str(folder / path))]
    main(["study", "fit", *given, "--features", "measures", *options, *ballots])


def test_a_model_is_refused_for_features_that_have_none(study):
    with refused("--model='x'", "--features measures", error=SystemExit):
        fit(study, "--model", "x")


def test_what_people_like_is_rewarded(study, capsys):
    fit(study, "--pairs", str(study / "pairs.jsonl"))
    share = float(capsys.readouterr().out.split("agrees with ")[1].split(" %")[0])
    assert share >= 85
    [first, *_] = map(json.loads, (study / "pairs.jsonl").read_text().splitlines())
    assert first["prompt"] == "prompt 0" and sorted([first["for_a"], first["for_b"]]) == [0.5, 1.5]
    reward = Scorer(RewardConfig(function="votes", model=str(study / "head.safetensors")))
    generator = torch.Generator().manual_seed(1)
    samples = [coloured(level, generator) for level in (0.1, 0.5, 0.9)]
    found = reward(torch.stack(samples)[:, :, None], [""] * 3)
    assert found.diff().min() > 0.5


def test_the_folders_of_a_study_cannot_be_swapped(study):
    """Both have the same file names, and the votes would count for the other sample."""
    key = json.loads((study / "key.json").read_text())
    for pair in key["pairs"]:
        pair["sha256"] = [file_digest(study / side / pair["file"]) for side in "ab"]
    (study / "key.json").write_text(json.dumps(key))
    fit(study)
    with refused(study / "b" / "0.png", "ours as --a", "theirs as --b", error=SystemExit):
        fit(study, "--a", str(study / "b"), "--b", str(study / "a"))


def test_votes_are_on_the_files_that_the_study_showed(study):
    """The samples of B may have other names than those of A."""
    key = json.loads((study / "key.json").read_text())
    for index, pair in enumerate(key["pairs"]):
        pair["file_b"] = f"{COUNT - 1 - index}.png"
    (study / "key.json").write_text(json.dumps(key))
    fit(study, "--pairs", str(study / "pairs.jsonl"))
    [first, *_] = map(json.loads, (study / "pairs.jsonl").read_text().splitlines())
    assert (Path(first["a"]).name, Path(first["b"]).name) == ("0.png", f"{COUNT - 1}.png")


def test_the_head_maximises_the_likelihood_of_the_votes(tmp_path):
    """3 of 4 votes for one of two images: the log odds are log 3, but for the ridge."""
    generator = torch.Generator().manual_seed(0)
    images = [coloured(level, generator) for level in (1.0, 0.0)]
    files = [tmp_path / f"{side}.png" for side in "ab"]
    for file, image in zip(files, images):
        write_image(file, image)
    head = fit_head([Pair(str(index), *files, 3000, 1000) for index in range(10)], "measures")
    save_head(tmp_path / "head", head)
    more, less = load_votes(str(tmp_path / "head"))(torch.stack(images)[:, :, None], [""] * 2)
    assert float(more - less) == pytest.approx(math.log(3), abs=0.02)


@pytest.mark.slow
def test_videos_have_the_features_of_the_embedded_judge(tmp_path):
    """People who like bright backgrounds."""
    generator, pairs = torch.Generator().manual_seed(0), []
    things = [world.parse("a red ring moving left")] * 80
    videos = world.draw_videos(things, generator)
    shade = videos.flatten(1).median(1).values
    for index in range(0, 80, 2):
        for side, video in zip("ab", videos[index : index + 2]):
            write_video(tmp_path / f"{index}{side}.mp4", video, fps=8, lossless=True)
        likes = int(shade[index] > shade[index + 1])
        files = (tmp_path / f"{index}{side}.mp4" for side in "ab")
        pairs.append(Pair(str(index), *files, likes, 1 - likes))
    head = fit_head(pairs, "shapes")
    assert head.agreement.value > 0.7
    save_head(tmp_path / "head", head)
    found = load_votes(str(tmp_path / "head"))(videos, [""] * 80)
    assert torch.corrcoef(torch.stack([found, shade]))[0, 1] > 0.7


def test_too_few_votes_are_refused(study):
    key = json.loads((study / "key.json").read_text())
    for person in "pq":
        ballot = {"study": "s", "person": person, "votes": {"0": "A"}}
        (study / f"votes-{person}.json").write_text(json.dumps(ballot))
    with refused("1 pairs", "10", error=SystemExit):
        fit(study)
    assert len(key["pairs"]) == COUNT and not (study / "head.safetensors").exists()


def test_votes_that_prefer_nothing_are_refused(study):
    pairs = [Pair(str(i), study / "a/0.png", study / "b/0.png", 1, 1) for i in range(10)]
    with refused("prefers"):
        fit_head(pairs, "measures")


def test_a_missing_sample_is_named(study):
    (study / "b" / "3.png").unlink()
    with refused(study / "b" / "3.png", error=SystemExit):
        fit(study)


def test_a_file_that_is_no_head_is_named(tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, other)
    for path in (other, tmp_path / "none.safetensors"):
        with refused(f"rewards.model={str(path)!r}", "votes"):
            load_votes(str(path))


def test_a_head_finds_its_clip_model_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "clips" / "vit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    save_head(Path("head"), Head("clip", "clips/vit", torch.ones(2), Measure(1.0)))
    monkeypatch.chdir("/")
    with refused(f"features of {tmp_path / 'head'}", tmp_path / "clips" / "vit", "config.json"):
        load_votes(str(tmp_path / "head"))
