"""`tdmvid sample` into a folder of earlier samples, after the list of prompts was changed."""

from types import SimpleNamespace

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.sampling.manifest import entry_of, gather_manifest


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """`sample(prompts, ...)` runs `tdmvid sample` without a model; files are empty."""

    def made(out, shots, **_):
        out.mkdir(exist_ok=True)
        for shot in shots:
            (out / shot.file).touch()
        gather_manifest(out, [entry_of(shot, {}, {}) for shot in shots])

    backbone = SimpleNamespace(takes_images=False, size=SimpleNamespace(frames=9))
    monkeypatch.setattr("tdmvid.sampling.student.load_for_sampling", lambda *_, **__: backbone)
    monkeypatch.setattr("tdmvid.sampling.sample.sample_videos", made)

    def sample(prompts, *options):
        (tmp_path / "prompts.txt").write_text("\n".join(prompts))
        out = ["--model", "x", "--out", str(tmp_path / "out")]
        main(["sample", "--prompts", str(tmp_path / "prompts.txt"), *out, *options])
        return sorted(path.name for path in (tmp_path / "out").glob("*.mp4"))

    return sample


def test_prompts_that_moved_in_their_list_are_refused(sample, tmp_path):
    """They would be sampled again under other names, and counted twice."""
    sample(["a cat", "a dog"])
    facts = (tmp_path / "out" / "00000_a-cat-0.mp4", "a cat", "00001_a-cat-0.mp4", "--out")
    for moved in (["a dog", "a cat"], ["a ring", "a cat", "a dog"]):
        with refused("error", *facts, error=SystemExit):
            sample(moved)
    with refused("error", "a cat", "a cat-0.mp4", "--names", error=SystemExit):
        sample(["a cat", "a dog"], "--names", "prompt")
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2


def test_prompts_and_seeds_may_be_added_and_files_deleted(sample, tmp_path, capsys):
    sample(["a cat", "a dog"])
    assert len(sample(["a cat", "a dog"])) == 2
    assert len(sample(["a cat", "a dog", "a ring"], "--seeds", "0,1")) == 6
    assert "other prompts" not in capsys.readouterr().out
    for file in (tmp_path / "out").glob("*.mp4"):
        file.unlink()
    assert sample(["a dog", "a cat"]) == ["00000_a-dog-0.mp4", "00001_a-cat-0.mp4"]


def test_samples_of_other_prompts_are_mentioned(sample, tmp_path, capsys):
    sample(["a cat", "a dog"])
    sample(["a small cat", "a dog"])
    assert f"{tmp_path / 'out'} also has 1 sample " in capsys.readouterr().out
