"""The shapes suite: the same ablations on the miniature CogVideoX, with the real trainer and scores
by the judge.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from benchmarks.published import published
from examples.shapes.make_videos import write_videos
from tdmvid.config import RunConfig, load_config
from tdmvid.data.checkpoints import list_steps
from tdmvid.data.items import read_run_items
from tdmvid.shapes import score, world
from tdmvid.shapes.judge import load_judge
from tdmvid.train import trainer
from tdmvid.train.run import Run
from tdmvid.train.samples import sample_student

from . import loops
from .consistency import consistency
from .page import Claim, Table

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """A row of the table: overrides of configs/shapes_4nfe.json, and the solvers for sampling."""

    group: str
    name: str
    changes: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (4,)
    method: str = ""
    """A method of METHODS, which is not part of tdmvid."""
    most_seeds: ClassVar[int] = 0
    """Number of seeds that the row is measured with at most; 0 for all."""


def _published(run: Run) -> loops.Method:
    return loops.Method(published, loops.in_order(run))


def _consistency(run: Run) -> loops.Method:
    items, _ = read_run_items(run.config, takes_images=False)
    return consistency(run, [item.prompt for item in items])


METHODS: dict[str, Callable[[Run], loops.Method]] = {
    "published": _published,
    "consistency": _consistency,
}
"""Iteration functions of other methods."""

REAL = ROOT / "runs" / "ablations" / "shapes_videos"
"""Ground truth for the discriminator, drawn when it is needed."""
VIDEOS = 512
"""Number of these videos."""
BASE = ("objective.rollout=stop", "objective.draws=own")
"""Settings of all rows, which every kind of objective supports."""
SNR = "objective.fake_weight=snr"
EXACT = "objective.fake_target=exact"
UNIFY = "objective.step_set=[1,2,4,8]"
DMD2 = "objective.kind=dmd2"
GAN = ("objective.kind=gan", f"real.path={REAL}", f"real.cache={REAL.with_name('shapes_latents')}")
ROWS = [
    Row("match", "TDM"),
    Row("match", "match clean", ("objective.match=clean",)),
    Row("importance", "importance sum", ("objective.importance=sum",)),
    Row("importance", "no importance", ("objective.importance=none",)),
    Row("fake's target", "exact target", (EXACT,)),
    Row("fake's weight", "SNR weight", (SNR,)),
    Row("fake's weight", "exact target, SNR weight", (EXACT, SNR)),
    Row("divergence", "Fisher", ("objective.kind=fisher",)),
    Row("baseline", "DMD2, 5 fake updates", (DMD2,), ("renoise",)),
    Row("baseline", "DMD2, 10 fake updates", (DMD2, "objective.fake_updates=10"), ("renoise",)),
    Row("baseline", "published call pattern", method="published"),
    Row("baseline", "consistency distillation", (), ("renoise",), method="consistency"),
    Row("divergence", "GAN", GAN),
    Row("unify", "TDM-unify", (UNIFY,), steps=(1, 2, 4, 8)),
    Row("unify", "TDM-unify without K", (UNIFY, "objective.k_condition=false"), steps=(1, 2, 4, 8)),
    Row("solver", "trained with DDIM", (), ("ddim", "dpm++")),
    Row("solver", "trained with DPM-Solver++", ("objective.solver=dpm++",), ("ddim", "dpm++")),
    Row("distance", "l2", ("objective.distance=l2",)),
    Row("distance", "huber_vector", ("objective.distance=huber_vector",)),
    Row("segments", "segments to the terminal", ("objective.segments=to_terminal",)),
    Row("draws", "shared draw", ("objective.draws=shared",)),
    *(
        Row("fake's rate", f"fake's rate {ratio} x", (f"fake.lr={ratio * 8e-4:g}",))
        for ratio in (2, 5, 10)
    ),
    Row("rollout", "full rollout", ("objective.rollout=full",)),
    Row("rollout", "stream", ("objective.rollout=stream",)),
    Row(
        "rollout",
        "stream, shared draw",
        ("objective.rollout=stream", "objective.draws=shared"),
    ),
]
"""A rate of the fake is given as a multiple of the student's."""


def train(config: RunConfig, method: str, figures: Callable[[Run], dict]) -> dict:
    """Train a student, measure it, and delete its folder.

    Args:
        config: Settings of the run.
        method: A method of METHODS; "" trains as `tdmvid train` does, and resumes.
        figures: Measures the student.

    Returns:
        What was measured, and the processor "seconds" of training. If an earlier start did a part
        of the iterations, they are estimated from the others.
    """
    found, done = {}, max(list_steps(config.folder / "checkpoints"), default=0)
    if done >= config.steps:  # nothing would be left to time
        shutil.rmtree(config.folder)
        done = 0

    def at_end(run: Run) -> None:
        share = 1 - done / config.steps
        found["seconds"] = (time.process_time() - began) / share
        found.update(figures(run))

    began = time.process_time()
    if method:
        run = loops.start(config)
        for _ in loops.iterations(run, METHODS[method](run)):
            pass
        at_end(run)
    else:
        trainer.train(config, resume="auto", at_end=at_end)
    shutil.rmtree(config.folder, ignore_errors=True)
    return found


class ShapesSuite(Table):
    """Values by solver and number of steps: share of correct videos, Fréchet distance and
    diversity.

    Args:
        iterations: Iterations of every row; 0 for those of the config.
        captions: Number of captions to score.
        reference: Number of ground-truth videos for the Fréchet distance.
    """

    page, title = "ablations_shapes.md", "Ablations on the CogVideoX in miniature"
    note = (
        "`right` is the share of videos with every attribute of their caption. The"
        " distance is the Fréchet distance to the ground truth. The row TDM is the demo with"
        " `objective.rollout=stop` and own draws."
    )

    def __init__(self, iterations: int = 0, *, captions: int = 64, reference: int = 4096):
        self.iterations, self.captions, self.reference = iterations, captions, reference
        self.columns = {
            f"{figure}/{steps}/{solver}": (
                f"{label}, {steps} {'step' if steps == 1 else 'steps'}"
                + ("" if solver == "ddim" else f", {solver}")
            )
            for steps in (1, 2, 4, 8)
            for solver in ("ddim", "dpm++", "renoise")
            for figure, label in (
                ("all", "right"),
                ("frechet", "distance"),
                ("diversity", "diversity"),
            )
        } | {"seconds": "processor seconds of training"}

    def settings(self) -> dict:
        """Return the settings that all rows share.

        Returns:
            Settings by name.
        """
        config = json.loads((ROOT / "configs/shapes_4nfe.json").read_text())
        return {
            "suite": "shapes",
            "iterations": self.iterations or config["steps"],
            "captions": self.captions,
            "reference": self.reference,
        }

    def rows(self) -> list[Row]:
        """Return the rows in the order of the table.

        Returns:
            Rows of the table.
        """
        return ROWS

    def claims(self) -> list[Claim]:
        """Return the claims of the paper's tables in terms of the Fréchet distance, and of
        diversity for Table 6.

        Returns:
            Claims to check.
        """
        ours, dmd2 = "TDM", "DMD2, 5 fake updates"
        ddim = "frechet/4/ddim"
        return [
            Claim("noisy matching beats clean (Table 8)", (ours, ddim), ("match clean", ddim)),
            Claim("importance weights help (Table 5)", (ours, ddim), ("no importance", ddim)),
            Claim(
                "Fisher is at least equal to KL (Table 9)",
                ("Fisher", ddim),
                (ours, ddim),
                strict=False,
            ),
            Claim("TDM ends closer than DMD2", (ours, ddim), (dmd2, "frechet/4/renoise")),
            Claim(
                "TDM is more diverse than DMD2 (Table 6)",
                (ours, "diversity/4/ddim"),
                (dmd2, "diversity/4/renoise"),
                higher=True,
            ),
            Claim(
                "unify: K helps at 1 step",
                ("TDM-unify", "frechet/1/ddim"),
                ("TDM-unify without K", "frechet/1/ddim"),
            ),
            Claim(
                "testing with DPM-Solver++ is at least equal (Table 7)",
                ("trained with DDIM", "frechet/4/dpm++"),
                ("trained with DDIM", ddim),
                strict=False,
            ),
        ]

    def measure(self, row: Row, seed: int) -> dict:
        """Train a row as a user would, without samples during training; then sample with every
        solver and score.

        Args:
            row: Row of the table.
            seed: Seed of the run.

        Returns:
            Values by column.
        """
        folder = (
            ROOT
            / "runs"
            / "ablations"
            / "shapes_runs"
            / f"{row.name.replace(' ', '_').replace(',', '')}_{seed}"
        )
        changes = [
            f"out={folder}",
            f"seed={seed}",
            "log.sample_every=0",
            "log.keep_checkpoints=1",
            f"steps={self.settings()['iterations']}",
            *BASE,
            *row.changes,
        ]
        config = load_config(ROOT / "configs" / "shapes_4nfe.json", changes)
        if config.real.path:
            write_videos(REAL, VIDEOS)
        return train(config, row.method, lambda run: self._figures(run, row))

    @torch.no_grad()
    def _figures(self, run: Run, row: Row) -> dict:
        judge, things = load_judge(), score.evaluation_set(self.captions, 4, 0)
        reference = score.reference_features(judge, things, self.reference, 1)
        cond = run.backbone.encode_prompts([world.caption(thing) for thing in things])
        run.backbone.release_text()
        z = torch.randn(
            (len(things), *run.backbone.latent_shape()), generator=torch.Generator().manual_seed(2)
        )
        figures = {}
        for steps in row.steps:
            grid = next((grid for grid in run.grids if grid.steps == steps), run.grid)
            for solver in row.solvers:
                parts = [
                    sample_student(
                        run, z[i : i + 64], cond.rows(slice(i, i + 64)), grid=grid, solver=solver
                    )
                    for i in range(0, len(z), 64)
                ]
                videos = torch.cat(
                    [run.backbone.decode(part) for part in torch.cat(parts).split(32)]
                )
                found = score.score_videos(judge, videos, things, reference)
                figures |= {
                    f"{key}/{steps}/{solver}": float(found[key]["value"])
                    for key in ("all", "frechet", "diversity")
                }
        return figures
