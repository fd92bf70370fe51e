"""A loss that is not finite changes no weights, is reported with role and step, and stops the run
if it persists.
"""

import json
import math
from dataclasses import asdict
from typing import ClassVar

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from tdmvid.backbones.registry import load_backbone
from tdmvid.data.checkpoints import list_steps
from tdmvid.data.embeddings import EmbeddingCache
from tdmvid.data.prompts import PromptOrder
from tdmvid.diffusion.denoiser import Cond
from tdmvid.distill.tdm import TDM
from tdmvid.parallel import launch
from tdmvid.train import trainer
from tdmvid.train.prepare import prepare_embeddings
from tdmvid.train.trainer import TrainingStopped, train

pytestmark = pytest.mark.usefixtures("loop_only")


@pytest.fixture
def poisoned(tiny_run, tmp_path, monkeypatch):
    """`poisoned(steps, *changes)`: a run whose prompts have NaN embeddings at these steps."""

    def make(steps, *changes):
        config = tiny_run(
            tmp_path / "run",
            f"prompts.cache={tmp_path / 'cache'}",
            "log.keep_checkpoints=9",
            *changes,
        )
        _, items = prepare_embeddings(
            config, load_backbone(config.model, config.video), launch.start("none")
        )
        order = PromptOrder(len(items), config.seed)
        bad = {items[order.indices(step, 1, 0, 1)[0]].prompt for step in steps}

        def get(cache, some):
            cond = intact(cache, some)
            factor = torch.tensor([math.nan if prompt in bad else 1.0 for prompt in some])
            return Cond({name: (t.T * factor).T for name, t in cond.items()})

        intact = EmbeddingCache.get
        monkeypatch.setattr(EmbeddingCache, "get", get)
        return config

    return make


def losses(config, role):
    return [
        json.loads(line)[f"loss/{role}"]
        for line in (config.folder / "metrics.jsonl").read_text().splitlines()
    ]


def state(config, step, role):
    """Return weights, optimizer moments and number of updates of a role in a checkpoint."""
    folder = config.folder / "checkpoints" / f"step_{step:06d}" / role
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = {
        f"{i}/{name}": value
        for i, values in saved["optimizer"]["state"].items()
        for name, value in values.items()
    }
    return load_file(folder / "weights.safetensors") | moments, saved["updates"]


def same(a, b):
    (first, updates), (second, others) = a, b
    return (
        updates == others
        and first.keys() == second.keys()
        and all(torch.equal(first[name], second[name]) for name in first)
    )


def test_three_bad_iterations_in_a_row_stop_the_run_with_the_last_good_state(poisoned, capsys):
    config = poisoned({2, 3, 4})
    with refused("fake", "3", "step 4", "step_000005", "fake.lr", error=TrainingStopped):
        train(config)
    said = capsys.readouterr().err
    for step, count in ((2, 1), (3, 2), (4, 3)):
        assert (
            f"step {step}: loss or gradient of the fake is not finite; its optimizer step was"
            f" skipped ({count} in a row)" in said
        )
    for role in ("student", "fake"):
        good = state(config, 2, role)
        assert good[1] == 2 and all(value.isfinite().all() for value in good[0].values())
        assert same(state(config, 4, role), good) and same(state(config, 5, role), good)
    assert [math.isnan(value) for value in losses(config, "fake")] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_bad_iterations_with_good_ones_between_do_not_stop_it(poisoned, capsys):
    config = poisoned({1, 3, 4}, "steps=6")
    train(config)
    assert [math.isnan(value) for value in losses(config, "fake")] == [
        False,
        True,
        False,
        True,
        True,
        False,
    ]
    for role in ("student", "fake"):
        weights, updates = state(config, 6, role)
        assert updates == 3 and all(value.isfinite().all() for value in weights.values())
        assert same(state(config, 4, role), (state(config, 4, role)[0], 2)) and not same(
            state(config, 6, role), state(config, 4, role)
        )
    assert capsys.readouterr().err.count("is not finite") == 3


def test_how_many_are_too_many_is_a_setting(poisoned):
    with refused("1", "step 1", error=TrainingStopped):
        train(poisoned({1}, "max_bad_steps=1"))


def test_weights_that_are_not_finite_are_no_good_state(tiny_run, tmp_path, monkeypatch):
    iterate = trainer.iterate

    def diverge(step, *args, engines, **options):
        if step == 2:
            next(iter(engines["student"].trainable.values())).data.fill_(math.nan)
        return iterate(step, *args, engines=engines, **options)

    monkeypatch.setattr(trainer, "iterate", diverge)
    config = tiny_run(tmp_path / "run", "max_bad_steps=1")
    newest = config.folder / "checkpoints" / "step_000002"
    with refused(
        "student", "step 2", "student.lr", f"--checkpoint {newest}", error=TrainingStopped
    ):
        train(config)
    assert list_steps(config.folder / "checkpoints") == [2]
    early = tiny_run(tmp_path / "early", "max_bad_steps=1", "log.checkpoint_every=0")
    with pytest.raises(TrainingStopped, match=r"student\.lr in a new run \(another --out\)$"):
        train(early)


class NaNStudent(TDM):
    """The student's loss is NaN in the turns listed in `bad`."""

    bad: ClassVar[set[int]] = set()
    turns: ClassVar[int] = 0

    def loss(self, role, roles, draw, cond):
        terms = super().loss(role, roles, draw, cond)
        if role == "student":
            type(self).turns += 1
            if type(self).turns - 1 in self.bad:
                terms["loss"] = terms["loss"] * math.nan
        return terms


def test_a_bad_student_loss_leaves_the_student_alone_and_names_it(
    tiny_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(NaNStudent, "bad", {1})
    monkeypatch.setattr(NaNStudent, "turns", 0)
    config = tiny_run(tmp_path, "steps=3", "log.checkpoint_every=1", "log.keep_checkpoints=9")
    monkeypatch.setattr(
        "tdmvid.train.trainer.build_objective", lambda settings: NaNStudent(**asdict(settings))
    )
    train(config)
    assert (
        "step 1: loss or gradient of the student is not finite; its optimizer step was skipped (1"
        " in a row)" in capsys.readouterr().err
    )
    assert same(state(config, 1, "student"), state(config, 2, "student"))
    assert not same(state(config, 2, "student"), state(config, 3, "student"))
    assert [state(config, 3, role)[1] for role in ("student", "fake")] == [2, 3]
