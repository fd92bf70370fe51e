"""A folder whose sampling was interrupted: what is said then, and that it never counts as whole."""

import pytest
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.sampling.manifest import UNFINISHED
from tdmvid.scoring.sample_folders import samples_of
from tdmvid.scoring.study import pair_samples

PROMPTS = ["a red circle", "a blue square", "a red square"]


def interrupt(make, backbone, monkeypatch, *, after):
    """Sample three prompts into "out", and interrupt before number `after`; return the message."""
    decode, calls = type(backbone).decode, []

    def interrupted(self, latents):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return decode(self, latents)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(type(backbone), "decode", interrupted)
        make("out", PROMPTS, (0,))
    return str(caught.value)


def test_an_interrupt_counts_the_samples(make, backbone, monkeypatch, tmp_path):
    told = interrupt(make, backbone, monkeypatch, after=2)
    assert f"2 of 3 samples are in {tmp_path / 'out'}" in told and "same command" in told
    told = interrupt(make, backbone, monkeypatch, after=0)  # the manifest now names those two
    assert "2 of 3 samples" in told and (tmp_path / "out" / "manifest.jsonl").is_file()


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_folder_is_neither_scored_nor_shown(
    make, backbone, monkeypatch, tmp_path, again
):
    out = tmp_path / "out"
    make("whole", PROMPTS, (0,))
    interrupt(make, backbone, monkeypatch, after=2)
    if again:
        interrupt(make, backbone, monkeypatch, after=0)
    with refused("error", out, "incomplete", "repeat its command", error=SystemExit):
        main(["score", "samples", str(out)])
    with refused(out, "incomplete", "repeat its command"):
        pair_samples(out, tmp_path / "whole")
    make("out", PROMPTS, (0,))
    assert len(samples_of(out)) == len(pair_samples(out, tmp_path / "whole")) == 3
    assert not (out / UNFINISHED).exists()


def test_a_folder_of_an_earlier_version_without_a_manifest_is_incomplete(tmp_path):
    (tmp_path / "sampling.json").write_text("{}")
    (tmp_path / "a-0.png").touch()
    with refused(tmp_path, "incomplete"):
        samples_of(tmp_path)
