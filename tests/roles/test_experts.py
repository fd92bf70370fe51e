"""Two experts trained in one run: each learns in its own iterations and is unchanged in others."""

import json
from types import SimpleNamespace

import pytest
import torch
from families import BUILDERS
from refusals import refused

from tdmvid.adapters.lora import attach
from tdmvid.backbones.experts import Experts, Split
from tdmvid.backbones.registry import load_backbone
from tdmvid.backbones.wan import Wan
from tdmvid.config import load_config
from tdmvid.export import sources
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.roles.guidance import guide
from tdmvid.train.checkpoint import Checkpoints
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train

PAIR = ("transformer", "transformer_2")


@pytest.fixture(scope="module")
def expert_json(tmp_path_factory):
    """The config file of a tiny run with two experts."""
    folder, builder = tmp_path_factory.mktemp("experts"), BUILDERS["WanPipeline"]
    torch.manual_seed(0)
    builder.build("experts").save_pretrained(folder / "base")
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    size = builder.SIZE
    settings = {
        "model": {"path": str(folder / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
        "grid": {"kind": "shifted", "shift": 2.0},
        "objective": {"cfg": 2.0, "cfg_2": 3.0},
        "steps": 6,
        "lora": {"rank": 2, "alpha": 4},
        "student": {"lr": 1e-2},
        "fake": {"lr": 1e-2},
        "ema": 0.5,
        "log": {"checkpoint_every": 2, "sample_every": 0, "sample_prompts": ["a circle"]},
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return folder / "tiny.json"


def states(run):
    """Return trained weights and averages of every expert of every role, one vector each."""
    return {
        (role, name, averaged): torch.cat(
            [x.flatten() for x in engine.weights(averaged=averaged).values()]
        )
        for role, pair in run.engines.items()
        for name, engine in pair.parts.items()
        for averaged in (False, True)
    }


@pytest.mark.parametrize("rollout", ["stop", "stream"])
def test_an_iteration_moves_one_expert_of_each_role(expert_json, tmp_path, loop_only, rollout):
    from tdmvid.train.trainer import _iteration

    changes = [f"out={tmp_path}", f"objective.rollout={rollout}"]
    changes += ["objective.stagger=none"] if rollout == "stream" else []
    run = build_run(load_config(expert_json, changes), launch.start("none"))
    seen, before = set(), states(run)
    for step in range(6):
        _iteration(run, step)
        after = states(run)
        moved = {key[:2] for key in after if not torch.equal(after[key], before[key])}
        [name] = {name for _, name in moved}
        assert {role for role, _ in moved} == {"student", "fake"}
        seen.add(name)
        before = after
    assert seen == set(PAIR)


def test_each_expert_warms_up_and_decays_over_its_share_of_the_iterations(expert_json, tmp_path):
    """The grid has a step above the boundary and three below it."""
    changes = ("student.warmup=4", "steps=8", f"out={tmp_path}")
    run = build_run(load_config(expert_json, changes), launch.start("none"))
    lengths = {
        name: (engine.config.warmup, engine.total_steps)
        for name, engine in run.engines["student"].parts.items()
    }
    assert lengths == {"transformer": (1, 2), "transformer_2": (3, 6)}


@pytest.mark.slow
def test_an_expert_in_host_memory_learns_the_same_and_moves_when_the_side_changes(
    expert_json, tmp_path, loop_only
):
    from tdmvid.train.trainer import _iteration

    found, stream = [], ["objective.rollout=stream", "objective.stagger=none"]
    for place in ("device", "host"):
        changes = [f"out={tmp_path}", *stream, f"model.idle_expert={place}"]
        run = build_run(load_config(expert_json, changes), launch.start("none"))
        moves, host = [], run.backbone.network.host
        for step in range(6):
            _iteration(run, step)
            moves.append(host.moves if host else 0)
        found.append(states(run))
        assert not host or all(
            parameter.data_ptr() == held.data_ptr()
            for name in PAIR
            if name != host.here
            for parameter, held in host.held[name]
        )
    one, two = found
    assert all(torch.equal(one[key], two[key]) for key in one)
    # calls at k = 4, 3, 2, 1, 4, 3; the low-noise expert takes k <= 3
    assert moves == [1, 2, 2, 2, 3, 4]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_both_experts_as_if_nothing_had_happened(
    expert_json, tmp_path, loop_only
):
    found = {}
    for name, changes in (("whole", ["steps=6"]), ("first", ["steps=4"]), ("first", ["steps=6"])):
        config = load_config(expert_json, [f"out={tmp_path / name}", *changes])
        train(config, resume="auto", at_end=lambda run, name=name: found.update({name: run}))
    one, two = states(found["whole"]), states(found["first"])
    assert all(torch.equal(one[key], two[key]) for key in one)
    folder = Checkpoints(tmp_path / "first" / "checkpoints", keep=1).latest() / "student"
    assert {path.name for path in folder.iterdir()} == set(PAIR)


@pytest.fixture
def unloadable(monkeypatch):
    """Make the test fail if a teacher is loaded."""

    def load(*_, **__):
        pytest.fail("the teacher was loaded")

    monkeypatch.setattr("tdmvid.train.run.load_backbone", load)


@pytest.mark.parametrize(
    "changes, facts",
    [
        (["objective.segments=to_terminal"], ["objective.segments", "to_terminal"]),
        (["objective.kind=dmd2"], ["objective.segments", "everywhere"]),
        (["objective.rollout=stream"], ["objective.stagger", "even"]),
        (["training=full"], ["training", "full"]),
    ],
)
def test_what_two_experts_cannot_do_is_refused_by_run_and_plan_before_they_are_loaded(
    expert_json, tmp_path, unloadable, changes, facts
):
    config = load_config(expert_json, [f"out={tmp_path}", *changes])
    for ask in (make_plan, lambda config: build_run(config, launch.start("none"))):
        with refused(*facts):
            ask(config)


def test_a_grid_away_from_the_boundary_is_refused_by_run_and_plan(expert_json, tmp_path):
    config = load_config(expert_json, [f"out={tmp_path}", "grid.shift=8"])
    for ask in (make_plan, lambda config: build_run(config, launch.start("none"))):
        with refused("grid.shift", "860"):
            ask(config)


def test_a_second_guidance_is_refused_for_a_teacher_of_one_network(tiny_run, tmp_path, unloadable):
    config = tiny_run(tmp_path, "objective.cfg=3", "objective.cfg_2=3")
    for ask in (make_plan, lambda config: build_run(config, launch.start("none"))):
        with refused("objective.cfg_2", "3.0"):
            ask(config)


def test_a_second_guidance_without_the_first_is_refused(expert_json):
    with refused("objective.cfg_2=3.0", "objective.cfg=1.0", "objective.cfg_2=null"):
        load_config(expert_json, ["objective.cfg=1"])


@pytest.mark.parametrize("cfg, second", [(None, 3.0), (5.0, 3.0), (2.0, 3.0), (1.0, None)])
def test_only_an_unguided_call_leaves_out_the_second_guidance(expert_json, cfg, second):
    denoiser = SimpleNamespace(process=None, backbone=Wan)
    guided = guide(load_config(expert_json), denoiser, None, cfg, boundary=0.86)
    assert guided.schedule.second == second


def test_an_export_places_what_both_experts_have_trained(expert_json, monkeypatch):
    config, placed = load_config(expert_json, ["model.idle_expert=host"]), []
    monkeypatch.setattr(
        Experts,
        "place_trained",
        lambda pair: placed.extend(n for n, p in pair.named_parameters() if p.requires_grad),
    )
    backbone = load_backbone(config.model, config.video)
    module = attach(backbone.fresh_network(), config.lora, backbone.lora_targets, seed=0)
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sources._attach(config, backbone, weights)
    assert sorted(placed) == sorted(weights)


def test_a_call_on_both_sides_of_the_boundary_is_caught():
    split = Split(0.875)
    assert split.choose(torch.tensor([875.0, 1000.0]), 1000.0) == PAIR[0]
    assert split.choose(torch.tensor([874.9, 0.0]), 1000.0) == PAIR[1]
    with pytest.raises(AssertionError):
        split.choose(torch.tensor([900.0, 800.0]), 1000.0)


@pytest.mark.slow
def test_the_plan_counts_both_bases_and_the_calls_of_one(expert_json, tmp_path):
    made = make_plan(load_config(expert_json, [f"out={tmp_path}"]))
    run = build_run(made.config, launch.start("none"))
    assert isinstance(run.backbone.network, Experts)
    base = sum(p.numel() for p in run.backbone.fresh_network().parameters())
    assert made.weights.base == base == 2 * made.weights.called and made.weights.experts == 2
    assert made.weights.trainable == sum(p.numel() for p in run.engines["fake"].trainable.values())
