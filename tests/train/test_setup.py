"""The networks that a run builds: how many weights they hold, and what affects that."""

import json
from dataclasses import replace

import pytest
import torch
from refusals import refused, states

from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.config import load_config
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.train.checkpoint import Checkpoints
from tdmvid.train.endings import TrainingStopped
from tdmvid.train.finalize import base_waiting
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train


def frozen_bytes(config) -> int:
    """Return the bytes of all frozen tensors of the roles, each counted once."""
    engines = build_run(config, launch.start("none")).engines
    storages = {
        p.data_ptr(): p.nbytes
        for engine in engines.values()
        for p in engine.module.parameters()
        if not p.requires_grad
    }
    return sum(storages.values())


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss/student"], row["loss/fake"]) for row in rows]


@pytest.mark.slow
def test_a_base_of_its_own_for_the_fake_holds_the_weights_twice_and_changes_no_number(
    tiny_run, tmp_path, loop_only
):
    shared, own = (
        tiny_run(tmp_path / "shared"),
        tiny_run(tmp_path / "own", "parallel.share_base=false"),
    )
    assert frozen_bytes(own) == 2 * frozen_bytes(shared)
    assert [make_plan(config).memory()["frozen weights"] for config in (shared, own)] == [
        frozen_bytes(shared),
        frozen_bytes(own),
    ]
    assert losses(train(own)) == losses(train(shared))


@pytest.mark.parametrize(
    "changes", [[], ["parallel.share_base=false"], ["training=full"]], ids=["shared", "two", "full"]
)
def test_the_base_leaves_its_device_while_an_export_is_checked_and_comes_back(
    tiny_run, tmp_path, changes
):
    run = build_run(tiny_run(tmp_path, *changes), launch.start("none"))
    networks = [run.backbone.network, *(engine.module for engine in run.engines.values())]
    parameters = {id(p): p for network in networks for p in network.parameters()}.values()
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(KeyError), base_waiting(run):
        assert all(bool(p.numel()) == p.requires_grad for p in parameters) and any(
            p.numel() for p in parameters
        )
        raise KeyError("an export that fails")
    assert all(torch.equal(p, old) for p, old in zip(parameters, before))


def test_the_text_encoder_has_the_device_to_itself(tiny_run, tmp_path, monkeypatch):
    held, release = [], CogVideoX.release_text

    def released(backbone):
        held.append(sum(p.numel() for p in backbone.network.parameters()))
        release(backbone)

    monkeypatch.setattr(CogVideoX, "release_text", released)
    monkeypatch.setattr(
        "tdmvid.train.prepare.embed_prompts",
        lambda cache, prompts, encode, each: held.append(
            sum(p.numel() for p in encode.__self__.network.parameters())
        ),
    )
    monkeypatch.setattr(
        "tdmvid.train.prepare.EmbeddingCache.get",
        lambda cache, prompts: (_ for _ in ()).throw(KeyError("no embeddings")),
    )
    with pytest.raises(KeyError):
        build_run(tiny_run(tmp_path), launch.start("none"))
    assert held == [0, 0]  # while it works, and when it goes


def test_tiles_may_be_chosen_on_the_way(tiny_run, tmp_path):
    """They only affect samples, so a run that is out of memory at the first samples can resume with
    tiling.
    """
    run = build_run(tiny_run(tmp_path), launch.start("none"))
    tiled = replace(run, config=replace(run.config, model=replace(run.config.model, tiling=True)))
    other = replace(
        run, config=replace(run.config, model=replace(run.config.model, dtype="bfloat16"))
    )
    assert tiled.fingerprint == run.fingerprint != other.fingerprint
    assert (
        replace(tiled, real_digest="clips").fingerprint
        != replace(run, real_digest="clips").fingerprint
    )  # which are encoded in tiles


@pytest.mark.parametrize(
    "base, change",
    [
        ("log.teacher_steps=3", "log.teacher_steps=4"),  # its scale depends on the number of steps
        ("model.tiling=false", "model.tiling=true"),  # the reward sees the decoded samples
    ],
)
def test_a_setting_that_changes_the_loss_is_compared_whatever_its_group(
    tiny_run, tmp_path, base, change
):
    rewards = 'rewards=[{"function": "motion"}]'
    more = ("objective.cfg=2", "objective.use_dynamic_cfg=true", "objective.rollout=full", rewards)
    run = build_run(tiny_run(tmp_path, base, *more), launch.start("none"))
    other = replace(run, config=tiny_run(tmp_path, change, *more))
    assert run.fingerprint != other.fingerprint
    other = replace(run, config=tiny_run(tmp_path, change, "objective.rollout=full"))
    plain = replace(run, config=tiny_run(tmp_path, base, "objective.rollout=full"))
    assert plain.fingerprint == other.fingerprint


def test_a_resume_names_the_accumulation_where_numbers_depend_on_it(tiny_run, tmp_path):
    """With rollout "stop" every micro-batch of a rank has its own k; with "full" every sample has
    one.
    """

    def laid_out(rollout, ranks):
        changes = (f"objective.rollout={rollout}", f"batch.accumulation={4 // ranks}")
        run = replace(stopped, config=tiny_run(tmp_path, *changes))
        return replace(run, world=replace(run.world, size=ranks))

    stopped = build_run(tiny_run(tmp_path), launch.start("none"))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for rollout in ("stop", "full"):
        path = checkpoints.save(1, stopped.engines, laid_out(rollout, 2).fingerprint)
        checkpoints.wait()
        for ranks in (1, 4):
            other = laid_out(rollout, ranks)
            if rollout == "full":
                assert Checkpoints.load(path, other.engines, other.fingerprint) == 1
                continue
            with refused("batch.accumulation=2", f"has {4 // ranks}"):
                Checkpoints.load(path, other.engines, other.fingerprint)


def test_notes_do_not_keep_a_run_from_its_checkpoints(tiny_run, tmp_path):
    run = build_run(tiny_run(tmp_path), launch.start("none"))
    noted = replace(run, config=replace(run.config, notes=("The rates are guesses.",)))
    assert noted.fingerprint == run.fingerprint


def test_a_total_batch_decides_the_accumulation_and_is_what_the_folder_keeps(
    tiny_run, tmp_path, loop_only, capsys
):
    """The stored config is valid for any number of ranks. Eight prompts are few for 200 x 4
    videos.
    """
    config = tiny_run(tmp_path, "batch.total=4", "batch.micro=2", "steps=1", "prompts.limit=1")
    kept = {}
    train(config, at_end=lambda run: kept.update(batch=run.config.batch))
    assert (kept["batch"].accumulation, load_config(tmp_path / "config.json")) == (2, config)
    assert "warning" not in capsys.readouterr().err


def test_a_run_that_repeats_its_prompts_too_often_is_warned_about(tiny_run, tmp_path, capsys):
    """The warning comes before training; 8 prompts in 101 iterations of 4 videos are 50.5 uses
    each.
    """

    class Started(Exception):
        pass

    def stop(*args):
        raise Started

    def warned(steps):
        out = tmp_path / str(steps)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Started):
            patch.setattr("tdmvid.train.trainer._loop", stop)
            train(tiny_run(out, "batch.total=4", f"steps={steps}"))
        return capsys.readouterr().err

    assert "8 prompts" in warned(101) and "warning" not in warned(100)


def test_a_student_that_diverges_in_its_last_iteration_is_told_so(tiny_run, tmp_path):
    """The run ends before three bad iterations in a row could be counted."""
    config = tiny_run(tmp_path, "steps=1")
    object.__setattr__(config.student, "lr", 1e30)  # no valid setting overflows immediately
    with refused("metrics.jsonl", "student.lr=1e+30", "fake.lr=0.01", error=RuntimeError):
        train(config)


def test_a_run_says_once_how_many_of_its_prompts_are_cut(tiny_run, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n" + "red " * 12 + "\n" + "blue " * 13 + "\n")
    train(tiny_run(tmp_path / "run", "steps=1", f"prompts.path={path}"))
    said = capsys.readouterr().err
    assert said.count("tokens") == 1
    assert states(said, "2 of 3 prompts") and states(said, "first prompt 2") and str(path) in said


@pytest.mark.parametrize(
    "changes, facts",
    [
        (["objective.step_set=[2,4]", "grid.steps=3"], ["objective.step_set=[2, 4]"]),
        (["objective.step_set=[2,4]", "grid.kind=explicit"], ["grid."]),
        (["grid.kind=explicit", "grid.timesteps=[10,500]"], ["grid.timesteps=[10.0, 500.0]"]),
        (["video.frames=10"], ["video.frames=10"]),
        (["video.height=60"], ["video.height=60"]),
        (["lora.targets=['nope']"], ["lora.targets", "nope"]),
        (["init=nowhere"], ["nowhere"]),
        (["guard.action=stop", "log.sample_every=1", "guard.prompt_uses=0.1"], ["prompt_uses"]),
        (['rewards=[{"function":"text"}]'], ["text"]),
    ],
    ids=lambda value: value[0],
)
def test_what_needs_no_weights_is_refused_before_they_are_loaded(
    tiny_run, tmp_path, monkeypatch, changes, facts
):
    monkeypatch.setattr(
        "tdmvid.train.run.load_backbone", lambda *_, **__: pytest.fail("loads the weights")
    )
    with refused(*facts, error=(ValueError, FileNotFoundError, TrainingStopped)):
        train(tiny_run(tmp_path / "run", *changes))
    assert not (tmp_path / "run" / "config.json").exists()
