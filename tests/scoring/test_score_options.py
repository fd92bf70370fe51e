"""Options of `tdmvid score` that a call would ignore are refused by name before any work."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
from refusals import refused

from tdmvid.cli import conditions
from tdmvid.cli.main import main
from tdmvid.scoring import vbench_verify


@pytest.mark.parametrize(
    "words, facts",
    [
        (["vbench", "--verify", "--lora", "x"], ["--lora='x'", "--verify"]),
        (["vbench", "--verify", "--out", "x"], ["--out='x'", "--verify"]),
        (["vbench", "--verify", "--stage", "all"], ["--stage='all'", "--verify"]),
        (["vbench", "--verify", "--download"], ["--download", "--verify"]),
        (["vbench", "--verify", "--set", "seeds=3"], ["--set seeds=3", "--verify", "environment"]),
        (["vbench", "--download", "--preflight"], ["--preflight", "--download"]),
        (["vbench", "--download", "--stage", "score"], ["--stage='score'", "--download"]),
        (["vbench", "--preflight", "--out", "x"], ["--out='x'", "--preflight"]),
        (["images", "--preflight", "--out", "x"], ["--out='x'", "--preflight"]),
        (["images", "--config", "images", "--preflight", "--lora", "nowhere"], ["nowhere"]),
        (["modes", "a", "b", "--out", "x", "--prompt", "y"], ["--prompt=['y']", "samples"]),
        (["modes", "a", "b", "--out", "x", "--count", "32"], ["--count=32", "samples"]),
        (["modes", "a", "b", "--out", "x", "--cfg", "2"], ["--cfg=2.0", "samples"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_an_option_without_effect_is_refused(words, facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused("error", *facts, error=SystemExit):
        main(["score", *words])


def test_the_check_of_vbench_reads_overrides_without_a_config(monkeypatch):
    seen = []
    monkeypatch.setattr(vbench_verify, "verify", lambda config: seen.append(config) or True)
    main(["score", "vbench", "--verify", "--set", "environment=mine", "--set", "cache=there"])
    assert (seen[0].environment, seen[0].cache) == ("mine", "there")


@pytest.mark.parametrize("name", ["captions", "reference"])
def test_the_shapes_world_scores_students_of_the_embedded_teacher_alone(name, tmp_path):
    args = Namespace(captions=64, reference=4096, given={name})
    with refused(f"--{name}={getattr(args, name)}", "teacher"):
        conditions._judged(SimpleNamespace(folder=Path(tmp_path)), args)
    args.given.clear()
    assert conditions._judged(SimpleNamespace(folder=Path(tmp_path)), args) is None
