"""Every objective trains, resumes, and exports a checked student."""

import json

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from tdmvid.config import RunConfig, from_dict, objective_settings, to_dict
from tdmvid.data.checkpoints import read_meta, write_meta
from tdmvid.data.video import write_video
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.grids import build_grids
from tdmvid.distill.objective import build_objective, objectives
from tdmvid.distill.tdm import TDM
from tdmvid.plan.make import make_plan
from tdmvid.train.trainer import train

UNIFY = ("objective.step_set=[1,2,4]", "objective.rollout=full")


def test_the_registry_has_each_method_under_its_kind():
    assert {"tdm": TDM, "dmd2": DMD2, "fisher": Fisher}.items() <= objectives().items()


@pytest.mark.parametrize("kind", sorted(objectives()))
def test_an_objective_comes_back_from_its_json(kind):
    config = from_dict(RunConfig, {"objective": {"kind": kind, "cfg": 3}})
    assert type(config.objective) is objective_settings()[kind] and config.objective.cfg == 3.0
    assert type(build_objective(config.objective)) is objectives()[kind]
    assert vars(build_objective(config.objective)) == vars(config.objective)
    assert from_dict(RunConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    "data, facts",
    [
        ({"kind": "tmd"}, ("objective.kind='tmd'", "'tdm'")),
        ({"kind": "fisher", "distance": "l2"}, ("objective.distance='l2'", "kind='fisher'")),
        ({"segments": "everywhere"}, ("objective.segments='everywhere'", "match='clean'")),
        ({"step_set": [4, 4]}, ("objective.step_set=[4, 4]",)),
        ({"randmit": True}, ("'objective.randmit'", "'randmid'")),
    ],
)
def test_a_wrong_objective_is_named(data, facts):
    with refused(*facts):
        from_dict(RunConfig, {"objective": data})


@pytest.mark.parametrize(
    "grid, facts",
    [
        ({"kind": "explicit", "timesteps": [999, 499]}, ("timesteps", "step_set")),
        ({"steps": 3}, ("grid.steps=3", "objective.step_set=[1, 4]")),
    ],
)
def test_a_grid_that_is_not_of_the_set_is_refused(process, grid, facts):
    config = from_dict(RunConfig, {"grid": grid, "objective": {"step_set": [1, 4]}})
    with refused(*facts):
        build_grids(config.grid, process, config.objective.step_set)


RUNS = {
    "dmd2": ("objective.kind=dmd2",),
    "fisher": ("objective.kind=fisher",),
    "dpm": ("objective.solver=dpm++",),
    "unify": UNIFY,
    "gan": ("objective.kind=gan", *UNIFY),
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Settings for a folder of five real videos."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(5):
        clip = torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(number)) * 2 - 1
        write_video(folder / "videos" / f"{number}.mp4", clip, fps=8)
    return f"real.path={folder / 'videos'}", f"real.cache={folder / 'cache'}"


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    tiny_run, tmp_path, loop_only, real, changes
):
    changes = (*changes, *(real if "objective.kind=gan" in changes else ()))
    whole = train(tiny_run(tmp_path / "whole", "steps=4", *changes))
    train(tiny_run(tmp_path / "parts", "steps=2", *changes))
    parts = train(tiny_run(tmp_path / "parts", "steps=4", *changes), resume="auto")
    for trained in (whole / "checkpoints" / "step_000004").glob("*/weights.safetensors"):
        a, b = load_file(trained), load_file(parts / trained.relative_to(whole))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_older_than_a_setting_had_its_default(tiny_run, tmp_path, loop_only):
    folder = train(tiny_run(tmp_path, "steps=2"))
    path = folder / "checkpoints" / "step_000002"
    written = read_meta(path)
    for name in ("kind", "solver", "match", "step_set", "k_condition"):
        del written["fingerprint"]["objective"][name]
    del written["fingerprint"]["init"]
    write_meta(path, written)
    train(tiny_run(tmp_path, "steps=3"), resume="auto")
    write_meta(path, written)
    with refused("objective.kind='tdm'", "'dmd2'"):
        train(tiny_run(tmp_path, "steps=4", "objective.kind=dmd2"), resume=str(path))


@pytest.mark.parametrize(
    "changes, facts",
    [
        (["objective.kind=gan"], ("objective.kind='gan'", "real.path")),
        (
            ["training=full", *UNIFY],
            ("objective.step_set", "training='full'", "k_condition=false"),
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(tiny_run, tmp_path, changes, facts):
    with refused(*facts):
        train(tiny_run(tmp_path, *changes))
    with refused(*facts):
        make_plan(tiny_run(tmp_path, *changes))


@pytest.mark.parametrize("kind", ["fisher", "gan"])
def test_a_gradient_in_a_network_s_input_needs_whole_weights(tiny_run, tmp_path, real, kind):
    changes = (f"objective.kind={kind}", *(real if kind == "gan" else ()))
    with refused("parallel.zero_stage"):
        make_plan(tiny_run(tmp_path, *changes), ranks=2)
    with refused("parallel.sequence"):
        make_plan(
            tiny_run(tmp_path, *changes, "parallel.zero_stage=2", "parallel.sequence=2"), ranks=2
        )
    assert make_plan(tiny_run(tmp_path, *changes, "parallel.zero_stage=2"), ranks=2).ranks == 2


@pytest.mark.slow
def test_what_other_kinds_cost_beside_tdm_is_planned(tiny_run, tmp_path, real):
    def of(*changes):
        return make_plan(tiny_run(tmp_path, "objective.cfg=2", *changes))

    plain, fisher, gan = of(), of("objective.kind=fisher"), of("objective.kind=gan", *real)
    assert (fisher.calls.backwards, fisher.graphs) == (
        5,
        4,
    )  # fake, student; through the fake, twice through the teacher
    half = gan.calls.discriminator
    assert (
        0.4 < half.forward_flops / gan.calls.network.forward_flops < 0.9
    )  # one of two blocks, and everything around them
    assert gan.flops() == pytest.approx(
        plain.flops() + 3 * half.forward_flops + half.backward_flops
    )
    assert (
        gan.memory()["optimiser"] == plain.memory()["optimiser"] + 8 * gan.weights.heads
        and gan.weights.heads > 1000
    )
    assert gan.activations(False) == max(
        2 * plain.calls.network.plain.kept, plain.calls.network.plain.kept + half.plain.kept
    )


def test_clips_that_cannot_be_used_are_named_before_the_first_step_and_the_others_stay_encoded(
    tiny_run, tmp_path, loop_only
):
    for number in range(3):
        write_video(tmp_path / "real" / f"{number}.mp4", torch.rand(3, 9, 32, 32) * 2 - 1, fps=8)
    write_video(tmp_path / "real" / "short.mp4", torch.rand(3, 4, 32, 32) * 2 - 1, fps=8)
    (tmp_path / "real" / "broken.mp4").write_bytes(b"no video")
    config = tiny_run(
        tmp_path / "run",
        "steps=1",
        "objective.kind=gan",
        f"real.path={tmp_path / 'real'}",
        f"real.cache={tmp_path / 'cache'}",
    )
    with refused("broken.mp4", "short.mp4", "4 frames"):
        train(config)
    for name in ("short", "broken"):
        (tmp_path / "real" / f"{name}.mp4").unlink()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    train(config)
    assert made and made == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")
    }


@pytest.mark.slow
def test_another_folder_of_clips_or_another_rate_is_another_run(
    tiny_run, tmp_path, loop_only, real
):
    train(tiny_run(tmp_path, "steps=1", *RUNS["gan"], *real))
    for change in ("real.limit=3", "discriminator.lr=0.5"):
        with refused(change.split("=")[0].removesuffix(".limit")):
            train(tiny_run(tmp_path, "steps=2", *RUNS["gan"], *real, change), resume="auto")
    train(tiny_run(tmp_path, "steps=2", *RUNS["gan"], *real), resume="auto")


@pytest.mark.slow
def test_a_unify_run_ends_in_one_checked_lora_per_k(tiny_run, tmp_path):
    folder = train(tiny_run(tmp_path, "steps=3", *UNIFY))
    errors = {}
    for name, steps in (("lora", 4), ("lora_1steps", 1), ("lora_2steps", 2)):
        facts = json.loads((folder / name / "export.json").read_text())
        errors[facts["steps"]] = facts["error"]
        assert facts["steps"] == steps
    assert max(errors.values()) < 1e-5 and len(errors) == 3
