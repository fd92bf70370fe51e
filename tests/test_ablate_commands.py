"""Every suite of eval/ablate.py runs from its command to its page. Nothing is trained."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import ablate
import pytest
import torch
from refusals import refused

import ablations
from ablations import demo, shapes
from ablations import toy as toy_suite
from ablations.toy import ToySuite, toy
from tdmvid.diffusion.denoiser import Cond

ROOT = Path(__file__).resolve().parents[1]


def replace_function(monkeypatch, module, name, function):
    """Replace a function by another one that has to be called with the same signature."""
    real = getattr(module, name)
    monkeypatch.setattr(module, name, create_autospec(real, side_effect=function))


@pytest.fixture
def untrained(monkeypatch):
    """Replace what trains. Samples are few, but drawn and scored as usual."""

    def distil(process, recipe, *, start, student=None, on_step, iteration=None):
        for step in (1, 2):
            on_step(step, lambda: start, 4 * step, {"grad_norm/student": 1.0, "ess/reward": 0.5})
        return student or start

    def pretrained(process, recipe):
        conditioned = recipe.objective.conditioned_on_steps
        return toy.VelocityNetwork(process, width=recipe.width, conditioned_on_steps=conditioned)

    replace_function(monkeypatch, toy, "distil", distil)
    replace_function(monkeypatch, toy, "pretrained", pretrained)
    replace_function(monkeypatch, toy_suite, "consistent", lambda start, teacher: start)
    for name in ("count", "shares"):
        monkeypatch.setattr(ToySuite, name, 200)


@pytest.fixture
def unsampled(monkeypatch, tmp_path):
    """Replace training, sampling and scoring of the shapes suite; configs are read as usual."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(shapes, "ROOT", tmp_path)
    backbone = SimpleNamespace(
        encode_prompts=lambda prompts: Cond({"x": torch.zeros(len(prompts), 1)}),
        release_text=lambda: None,
        latent_shape=lambda: (1,),
        decode=lambda latents: latents,
    )

    run = SimpleNamespace(backbone=backbone, grids=(), grid=None)

    def train(config, *, resume, at_end):
        config.folder.mkdir(parents=True)
        at_end(run)
        return config.folder

    value = {"value": 0.5}
    scores = {"all": value, "frechet": value, "diversity": value}
    replace_function(monkeypatch, shapes.trainer, "train", train)
    replace_function(monkeypatch, shapes, "write_videos", lambda out, count: None)
    replace_function(monkeypatch, shapes.loops, "start", lambda config: run)
    replace_function(monkeypatch, shapes.loops, "iterations", lambda run, method: iter(({},)))
    monkeypatch.setattr(shapes, "METHODS", dict.fromkeys(shapes.METHODS, lambda run: None))
    replace_function(monkeypatch, shapes, "sample_student", lambda run, z, cond, **_: z)
    replace_function(monkeypatch, shapes.score, "score_videos", lambda *_: scores)
    replace_function(monkeypatch, shapes.score, "reference_features", lambda *_: torch.zeros(2, 14))
    found = {f"{key}/{seed}": 0.5 for key in demo.COLUMNS for seed in demo.EVALUATIONS}
    found |= {f"videos/{seed}": "10" * demo.CAPTIONS * 2 for seed in demo.EVALUATIONS}
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    replace_function(monkeypatch, demo, "load_teacher", lambda model, size: None)
    replace_function(monkeypatch, demo, "fitting", lambda config, method, iterations: 7)
    replace_function(monkeypatch, demo, "_score", lambda backbone, videos: dict(found))


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["ablate.py", *map(str, words)])
    ablate.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", ablations.SUITES)
def test_a_suite_measures_every_row_and_shows_it(name, tmp_path, monkeypatch, untrained, unsampled):
    out = tmp_path / "out"
    run(monkeypatch, "--suite", name, "--seeds", 0, 1, "--out", out)
    suite = ablations.suite(name, 0)
    page = (out / suite.page).read_text()
    for row in suite.rows():
        assert f" {row.name.removeprefix(f'{row.group}: ')} |" in page
    claims = [claim for claim in suite.claims() if f"| {claim.text} |" not in page]
    assert not claims, "a claim is shown if both of its rows have results"


def test_a_suite_of_negative_length_is_refused(tmp_path, monkeypatch):
    with refused("--iterations=-1"):
        run(monkeypatch, "--suite", "toy", "--iterations", -1, "--out", tmp_path)


@pytest.mark.parametrize("text, fact", [("{", "not JSON"), ("[]", "object"), ("{}", "--out")])
def test_a_stored_result_that_is_none_is_refused_by_name(tmp_path, text, fact):
    suite = ToySuite()
    path = tmp_path / "00_0.json"
    path.write_text(text)
    with refused(path, fact, error=(ValueError, SystemExit)):
        ablate.results(suite, tmp_path)


def test_a_page_is_not_made_from_results_of_a_row_that_has_changed(tmp_path):
    old, new = ToySuite(10), ToySuite(10)
    rows = old.rows()
    new.rows = lambda: rows[::-1]
    stored = {"row": repr(rows[0]), "settings": old.settings(), "figures": {"mass": 0.5}}
    (tmp_path / "00_0.json").write_text(json.dumps(stored))
    assert ablate.results(old, tmp_path)["TDM"] == [{"mass": 0.5}]
    with pytest.raises(SystemExit, match="choose another --out"):
        ablate.results(new, tmp_path)


def test_a_run_of_few_iterations_has_no_negative_average():
    assert ToySuite(3).base.ema == 0 and ToySuite(1000).base.ema == 0.995


def test_the_data_of_a_page_continue_it_on_another_machine(tmp_path, monkeypatch, capsys):
    suite, measured = ToySuite(10), []
    monkeypatch.setattr(suite, "claims", list)
    monkeypatch.setattr(ablate.ablations, "suite", lambda name, steps: suite)
    monkeypatch.setattr(
        suite, "measure", lambda row, seed: measured.append(seed) or {"mass": 0.25 * seed}
    )
    words = ("--suite", "toy", "--rows", "TDM", "match clean", "--pages", tmp_path / "docs")
    run(monkeypatch, *words, "--seeds", 0, 2, "--out", tmp_path / "here")
    pages = sorted(path.name for path in (tmp_path / "docs").iterdir())
    assert pages == ["ablations.json", "ablations.md"] and measured == [0, 0, 2, 2]
    run(monkeypatch, *words, "--seeds", 1, "--out", tmp_path / "there")
    assert measured[4:] == [1, 1], "only the new seed is measured"
    assert ablate.results(suite, tmp_path / "there/toy")["TDM"] == [
        {"mass": 0.0},
        {"mass": 0.25},
        {"mass": 0.5},
    ]
    monkeypatch.setattr(suite, "base", ToySuite(20).base)
    run(monkeypatch, *words, "--seeds", 3, "--out", tmp_path / "longer")
    assert "ablations.json is not used: it was measured with" in capsys.readouterr().out
    assert ablate.results(suite, tmp_path / "longer/toy")["TDM"] == [{"mass": 0.75}]


def test_the_data_of_a_row_that_has_changed_are_left_out(tmp_path):
    suite = ToySuite(10)
    row = repr(suite.rows()[0])
    stored = {"row": row, "seed": 0, "settings": suite.settings(), "figures": {"mass": 0.5}}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/00_0.json").write_text(json.dumps(stored))
    ablations.write_data(tmp_path / "page.json", suite, tmp_path / "kept")
    changed, rows = ToySuite(10), suite.rows()
    changed.rows = lambda: rows[1:]
    (line,) = ablations.take_data(tmp_path / "page.json", changed, tmp_path / "new")
    assert line.endswith("page.json: TDM is not used: the row has changed since")
    assert not (tmp_path / "new").exists()
    (tmp_path / "page.json").write_text("{}")
    with refused(tmp_path / "page.json", "no settings and rows"):
        ablations.take_data(tmp_path / "page.json", suite, tmp_path / "new")
