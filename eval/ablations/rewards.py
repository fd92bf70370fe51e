"""Measure how much of a reward arrives: a mixture of Gaussians whose reward favours some modes.

The law of a run with the reward is known: the student's own law without the reward, times
exp(lam r). The share of the rewarded modes is compared with it.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from typing import ClassVar

import torch

from benchmarks.toy_score import samples

from .page import Axes, spread
from .reward_rows import RADII, STRENGTHS, RewardRows
from .rewarded import FAVOURED, ring
from .toy import Row, toy

SEARCHED = """## TDM-R1

TDM-R1 (arXiv 2603.07700) trains a surrogate with a group preference loss, and moves the student
along teacher - fake plus a weight times surrogate - reference. It is an arm of this comparison and
not an objective of tdmvid: with every setting that was tried, the share rises at the cost of the
samples' precision and of the proportions within the other modes. Rewards through the fake reach the
same share with more samples near a mode, and their strength predicts the share.

Settings that were tried at radius 1.5, one seed, 300 iterations each (not all combinations): weight
0.7 (published) to 10; each direction divided by its own mean (published), or by the distance
between x0_hat and the teacher's prediction, as in TDM; scale of the preference 1, 10 (both
published); clip 0.002 (published), 0.02, none; distance to the reference from which only the wrong
side contributes 0.01, 0.05 (published), 0.5, none; weight of that distance 0.001 (published), 0.05,
0.5; smallest time of the draws of surrogate and student 0, 0.02, 0.1, 0.25, 0.4, and 0.25 with 0.55
(published for GenEval); groups of 8 and 32 (published: 24); learning rate of the surrogate 2e-3,
the fake's (published: the fake's), and 6e-4; the fake's target x0_hat (published) and exact. With
weight 3 and a distance limit of 0.5 or none, no sample stays near a mode. `changed settings` are
TDM's divisor, times from 0.1 and the rate 6e-4.

The teacher has no guidance here, and all weights are trained. The published results are those of
LoRAs on image models, which this page does not test."""
"""What was tried for TDM-R1."""


class RewardsSuite(RewardRows):
    """Share of the rewarded modes, by strength, rollout, radius and other settings.

    Args:
        iterations: Iterations of every row; 0 for 600.
    """

    page, title, suite = "rewards_measured.md", "How much of a reward arrives", "rewards"
    note = (
        "`share` is the share of samples nearest to a rewarded mode. `expected` is the share that"
        " the formula gives: odds of the row with the same settings and strength 0, times"
        " exp(lam). `arriving` is the change of the log odds of the share, divided by lam."
        " `rewarded` and `others` are the total variation between the shares of the modes within"
        " a group and those of the teacher (chance alone: below 0.01). `precision` is the share of"
        " samples within three deviations of a mode. `ess` is the mean effective share of the"
        " batch in the weights. A row changes what its name says and nothing else, except that"
        " `two labelled fakes` has 4 / 5 of the iterations, because each takes 1.25 times the"
        " processor time. With `strength / 0.6` the strength is 1 / 0.6 times the lam of the row."
        " TDM-R1 has half of the iterations, because each takes twice the processor time, and no"
        " lam. Streams have `finished_predictions: stored`. Values without ± have one seed."
    )
    columns: ClassVar[dict[str, str]] = {
        "share": "share",
        "expected": "expected",
        "arriving": "arriving",
        "rewarded": "rewarded",
        "others": "others",
        "precision": "precision",
        "ess": "ess",
    }
    axes = Axes("strength lam", "share of the rewarded modes", "linear", "share over strength")

    def curves(self, results: dict) -> dict[str, list[list[tuple[float, float]]]]:
        """Return the share over the strength, measured and expected.

        Args:
            results: Results by row.

        Returns:
            For each line of the plot, one list of (strength, share) per seed.
        """
        points: dict[str, list] = {}
        for row in self.rows():
            if results.get(row.name) and row.group in self._swept():
                points.setdefault(row.group, []).append(
                    [(row.recipe.strength, found["share"]) for found in results[row.name]]
                )
        lines = {
            line: [sorted(seed) for seed in zip(*rows, strict=True)]
            for line, rows in points.items()
        }
        teacher = float(ring(RADII[0]).weights[list(FAVOURED)].sum())
        law = [(strength, tilted(teacher, strength)) for strength in STRENGTHS]
        return {"the teacher's law, tilted": [law]} | lines if lines else {}

    def sections(self, results: dict) -> list[str]:
        """Add the columns that compare a row with the one without a reward, and describe how the
        strength is to be read.

        Args:
            results: Results by row.

        Returns:
            Lines of Markdown.
        """
        self._compare(results)
        lines = [
            "## How to read the strength",
            "",
            "The part of the log odds that arrives, (log odds with the reward - log odds without"
            " it) / lam. 1 is the formula. Mean and standard deviation over the seeds.",
            "",
            "| | " + " | ".join(f"lam {strength:g}" for strength in STRENGTHS[1:]) + " |",
            "|---" * len(STRENGTHS) + "|",
        ]
        for group in self._swept():
            names = [f"{group}: lam {strength:g}" for strength in STRENGTHS[1:]]
            parts = [
                [seed["arriving"] for seed in results.get(name, []) if "arriving" in seed]
                for name in names
            ]
            cells = [spread(part) if part else "" for part in parts]
            lines.append(f"| {group} | " + " | ".join(cells) + " |")
        return [*lines, "", SEARCHED, ""]

    def _compare(self, results: dict) -> None:
        """Add the share that is expected and the part of the log odds that arrives."""
        for row in self.rows():
            if row.recipe.aimed is None:
                continue
            plain = results.get(f"{self._without(row)}: lam 0", [])
            for found, start in zip(results.get(row.name, []), plain):
                found["expected"] = tilted(start["share"], row.recipe.aimed)
                if row.recipe.aimed:
                    change = log_odds(found["share"], self.shares) - log_odds(
                        start["share"], self.shares
                    )
                    found["arriving"] = change / row.recipe.aimed

    def measure(self, row: Row, seed: int) -> dict:
        """Distil a row, sample, and count the samples of each mode.

        Args:
            row: Row of the table.
            seed: Seed of the run.

        Returns:
            Values by column.
        """
        recipe, shares = replace(row.recipe, seed=seed), []

        def on_step(done, averaged, made, scalars):
            shares.append(scalars.get("ess/reward", 1.0))

        start = self._start(recipe)
        began = time.process_time()
        student = toy.distil(
            self.process, recipe, start=start, on_step=on_step, iteration=recipe.turns(start)
        )
        used = {"seconds": time.process_time() - began, "ess": statistics.mean(shares)}
        return self._groups(student, recipe) | used

    def _start(self, recipe):
        key = recipe.seed, recipe.radius
        if key not in self._starts:
            self._starts[key] = toy.pretrained(self.process, recipe)
        return self._starts[key]

    def _groups(self, student, recipe) -> dict:
        """Return the share of the rewarded modes, and how the modes of each group share theirs."""
        generator, mixture = torch.Generator().manual_seed(7), recipe.data()
        found = samples(student, recipe.steps, generator, shift=recipe.shift, count=self.shares)
        distance = torch.cdist(found, mixture.means)
        share = torch.bincount(distance.argmin(1), minlength=len(mixture.means)) / self.shares
        good = torch.isin(torch.arange(len(share)), torch.tensor(FAVOURED))
        within = {}
        for name, group in (("rewarded", good), ("others", ~good)):
            mine, law = (each[group] / each[group].sum() for each in (share, mixture.weights))
            within[name] = float((mine - law).abs().sum() / 2)
        near = distance.min(1).values < 3 * mixture.std
        return within | {
            "share": float(share[good].sum()),
            "precision": float(near.float().mean()),
        }


def tilted(share: float, strength: float, count: int = 0) -> float:
    """Return the share of the rewarded samples of a law that is multiplied by exp(strength r).

    Args:
        share: Share without the reward.
        strength: Strength lam of a reward of 1.
        count: Number of samples that the share was measured on; see `log_odds`.

    Returns:
        The share with the reward.
    """
    return 1 / (1 + math.exp(-(log_odds(share, count) + strength)))


def log_odds(share: float, count: int = 0) -> float:
    """Return log(share / (1 - share)).

    Args:
        share: Share; above 0 and below 1 without `count`.
        count: Number of samples that it was measured on. The share is kept half a sample away from
            0 and 1, so that a share of all samples has log odds too.

    Returns:
        The log odds.
    """
    if count:
        share = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return math.log(share / (1 - share))
