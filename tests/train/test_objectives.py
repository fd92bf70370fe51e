"""Every objective is a run like any other: it trains, resumes, and what it exports was checked."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tdmvid.config import RunConfig, from_dict, to_dict
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.objective import objectives
from tdmvid.distill.tdm import TDM
from tdmvid.train.checkpoint import META
from tdmvid.train.plan import make_plan
from tdmvid.train.trainer import train

UNIFY = ("objective.step_set=[1,2,4]", "objective.rollout=full")


def test_the_registry_has_each_method_under_its_kind():
    assert {"tdm": TDM, "dmd2": DMD2, "fisher": Fisher}.items() <= objectives().items()


@pytest.mark.parametrize("kind", sorted(objectives()))
def test_an_objective_comes_back_from_its_json(kind):
    config = from_dict(RunConfig, {"objective": {"kind": kind, "cfg": 3}})
    assert type(config.objective) is objectives()[kind] and config.objective.cfg == 3.0
    assert from_dict(RunConfig, to_dict(config)) == config


@pytest.mark.parametrize("data, message", [
    ({"kind": "tmd"}, r"objective\.kind='tmd': choose one of 'dmd2', 'fisher', .*'tdm'"),
    ({"kind": "fisher", "distance": "l2"}, r"objective\.distance='l2'.* kind 'fisher' has no distance"),
    ({"segments": "everywhere"}, r"objective\.segments='everywhere'.*use match='clean'"),
    ({"step_set": [4, 4]}, r"objective\.step_set=\(4, 4\): .* each once"),
    ({"randmit": True}, r"unknown setting 'objective\.randmit': did you mean 'randmid'"),
])
def test_a_wrong_objective_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(RunConfig, {"objective": data})


@pytest.mark.parametrize("grid, message", [
    ({"kind": "explicit", "timesteps": [999, 499]}, "listed timesteps are one grid"),
    ({"steps": 3}, r"grid\.steps=3 is not in objective\.step_set=\(1, 4\)"),
])
def test_a_grid_that_is_not_of_the_set_is_refused(process, grid, message):
    config = from_dict(RunConfig, {"grid": grid, "objective": {"step_set": [1, 4]}})
    with pytest.raises(ValueError, match=message):
        config.grid.family(process, config.objective.step_set)


RUNS = {"dmd2": ("objective.kind=dmd2",), "fisher": ("objective.kind=fisher",), "dpm": ("objective.solver=dpm++",), "unify": UNIFY}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(tiny_run, tmp_path, loop_only, changes):
    whole = train(tiny_run(tmp_path / "whole", "steps=4", *changes))
    train(tiny_run(tmp_path / "parts", "steps=2", *changes))
    parts = train(tiny_run(tmp_path / "parts", "steps=4", *changes), resume="auto")
    for role in ("student", "fake"):
        a, b = (load_file(folder / "checkpoints" / "step_000004" / role / "weights.safetensors") for folder in (whole, parts))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_older_than_a_setting_had_its_default(tiny_run, tmp_path, loop_only):
    folder = train(tiny_run(tmp_path, "steps=2"))
    meta = folder / "checkpoints" / "step_000002" / META
    written = json.loads(meta.read_text())
    for name in ("kind", "solver", "match", "step_set", "k_condition"):
        del written["fingerprint"]["objective"][name]
    del written["fingerprint"]["init"]
    meta.write_text(json.dumps(written))
    train(tiny_run(tmp_path, "steps=3"), resume="auto")
    meta.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"objective\.kind='tdm', this run has 'dmd2'"):
        train(tiny_run(tmp_path, "steps=4", "objective.kind=dmd2"), resume=str(meta.parent))


@pytest.mark.parametrize("changes, message", [
    (["objective.kind=fisher", "parallel.gradient_checkpointing=true"], "objective.kind='fisher' with gradient_checkpointing: .* parallel.gradient_checkpointing=false"),
    (["objective.kind=gan"], "objective.kind='gan' trains a discriminator, which no model family has yet"),
    (["training=full", *UNIFY], "objective.step_set with training='full': .* use training='lora', or k_condition=false"),
])
def test_what_cannot_be_trained_yet_is_refused_at_the_start(tiny_run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tiny_run(tmp_path, *changes))
    with pytest.raises(ValueError, match=message):
        make_plan(tiny_run(tmp_path, *changes))


def test_a_gradient_through_the_scores_is_for_one_process_and_is_planned(tiny_run, tmp_path):
    config = tiny_run(tmp_path, "objective.kind=fisher", "objective.cfg=2")
    with pytest.raises(ValueError, match="objective.kind='fisher' differentiates through fake and teacher, .* start one process without a launcher"):
        make_plan(config, ranks=2)
    assert make_plan(config).backwards == 5 and make_plan(config).graphs == 4  # fake, student; through the fake, twice through the teacher


def test_a_unify_run_ends_in_one_checked_lora_per_k(tiny_run, tmp_path):
    folder = train(tiny_run(tmp_path, "steps=3", *UNIFY))
    errors = {}
    for name, steps in (("lora", 4), ("lora_1steps", 1), ("lora_2steps", 2)):
        facts = json.loads((folder / name / "export.json").read_text())
        errors[facts["steps"]] = facts["error"]
        assert facts["steps"] == steps
    assert max(errors.values()) < 1e-5 and len(errors) == 3
