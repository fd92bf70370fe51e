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

from tdmvid.config import TDMSettings

from .labelled import Labelled
from .page import Axes, Claim, spread
from .rewarded import FAVOURED, Raised, Rewarded, ring
from .toy import Row, ToySuite, of_length, toy

RADII = (1.5, 3.0)
ROLLOUTS = ("stream", "full")
STRENGTHS = (0.0, 1.0, 2.0, 3.0)
RATE = 6e-4
"""Learning rate of the student, twice that of the other ablations because runs are shorter."""
HARD = 2.0
"""Strength of the rows that vary something else."""
PART = 0.6
"""About the part of the strength that arrives with the default target."""
LABELLED = ", two labelled fakes"
DEARER = 1.25
"""Processor time of an iteration with two labelled fakes, relative to one without."""
ALONE = (", divided by its mean", ", Re-DMD", f", strength / {PART:g}", LABELLED)
"""Ends of the names of groups without a row of strength 0, which would be that of the others."""


class Varied(Row):
    """A row that varies another setting."""


class Long(Row):
    """A row of a long run."""

    most_seeds: ClassVar[int] = 2


class RewardsSuite(ToySuite):
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

    def __init__(self, iterations: int = 0):
        super().__init__(iterations or 600)
        base = self.base
        objective = replace(base.objective, rollout="stream", fake_target="x0_hat")
        self.base = Rewarded(
            objective=objective,
            iterations=base.iterations,
            batch=base.batch,
            width=base.width,
            lr_student=RATE,
            ema=base.ema,
        )

    def rows(self) -> list[Row]:
        """Return the sweep over strengths, and rows that vary another setting at one strength.

        Returns:
            Rows of the table.
        """
        plain = [
            self._row(self._ring(radius, rollout), strength, {"rollout": rollout}, radius=radius)
            for radius in RADII
            for rollout in ROLLOUTS
            for strength in STRENGTHS
        ]
        varied = self._targets() + self._batches() + self._compared() + self._longer()
        return (
            plain + varied + self._ceilings() + self._raised() + self._labelled() + self._smaller()
        )

    def _ring(self, radius: float, what: str) -> str:
        return f"radius {radius:g}, {what}"

    def _row(
        self, group: str, strength: float, objective: dict, base: Rewarded | None = None, **changes
    ) -> Row:
        changed = replace(self.base.objective, **objective)
        recipe = replace(base or self.base, objective=changed, strength=strength, **changes)
        kind = Row if group in self._swept() else Varied
        if recipe.iterations > self.base.iterations:
            kind = Long
        return kind(group, f"{group}: lam {recipe.aimed:g}", recipe, curve=group)

    def _as(self, kind: type[Rewarded], **more) -> Rewarded:
        """Return the shared settings as those of another kind of run."""
        return kind(**vars(self.base) | more)

    def _targets(self) -> list[Row]:
        """Return the exact target of the fake."""
        exact = {"fake_target": "exact"}
        return [
            self._row(self._ring(radius, "stream, exact target"), strength, exact, radius=radius)
            for radius in RADII
            for strength in (0.0, HARD)
        ]

    def _batches(self) -> list[Row]:
        """Return smaller batches, and the batch's own mean as divisor."""
        rows = []
        for batch in (16, 64, self.base.batch):
            ring = self._ring(RADII[0], f"stream, batch {batch}")
            if batch != self.base.batch:
                rows += [self._row(ring, strength, {}, batch=batch) for strength in (0.0, HARD)]
            group = f"{ring}, divided by its mean"
            rows.append(self._row(group, HARD, {}, batch=batch, divisor="batch"))
        return rows

    def _compared(self) -> list[Row]:
        """Return the weights of Re-DMD."""
        redmd = {"rollout": "full", "reward_weights": "student"}
        return [
            self._row(self._ring(radius, "full, Re-DMD"), HARD, redmd, radius=radius)
            for radius in RADII
        ]

    def _longer(self) -> list[Row]:
        """Return runs of four times the length, to tell what is missing from what is not learned
        yet.
        """
        length = 4 * self.base.iterations
        longer = of_length(self.base, length)
        return [
            self._row(
                self._ring(radius, f"stream, {length} iterations"),
                strength,
                {},
                radius=radius,
                iterations=length,
                ema=longer.ema,
            )
            for radius in RADII
            for strength in (0.0, HARD)
        ]

    def _ceilings(self) -> list[Row]:
        """Return the exact target with the default ceiling of its weight over time."""
        exact = {"fake_target": "exact", "snr_ceiling": TDMSettings().snr_ceiling}
        return [
            self._row(
                self._ring(radius, f"stream, exact target, ceiling {exact['snr_ceiling']:g}"),
                strength,
                exact,
                radius=radius,
            )
            for radius in RADII
            for strength in (0.0, HARD)
        ]

    def _smaller(self) -> list[Row]:
        """Return a smaller batch with as many samples in the whole run."""
        batch = self.base.batch // 4
        length = self.base.iterations * self.base.batch // batch
        longer = replace(of_length(self.base, length), batch=batch)
        ring = self._ring(RADII[0], f"stream, batch {batch}, {length} iterations")
        return [self._row(ring, strength, {}, longer) for strength in (0.0, HARD)]

    def _raised(self) -> list[Row]:
        """Return a larger strength alone."""
        base = self._as(Raised, arriving=PART)
        return [
            self._row(
                self._ring(radius, f"stream, strength / {PART:g}"),
                HARD / PART,
                {},
                base,
                radius=radius,
            )
            for radius in RADII
        ]

    def _labelled(self) -> list[Row]:
        """Return two labelled fakes of finished samples, in the same processor time."""
        shorter = of_length(self._as(Labelled), round(self.base.iterations / DEARER))
        return [
            self._row(self._ring(radius, f"stream{LABELLED}"), HARD, {}, shorter, radius=radius)
            for radius in RADII
        ]

    def claims(self) -> list[Claim]:
        """Return what the formula predicts, and the comparisons at one strength.

        Returns:
            Claims to check.
        """
        exact, plain = "stream, exact target", "stream"
        pairs = [
            (
                f"radius {radius:g}: more arrives with the exact target than with x0_hat",
                (self._ring(radius, exact), self._ring(radius, plain)),
            )
            for radius in RADII
        ]
        near = RADII[0]
        for batch in (16, 64):
            ring = self._ring(near, f"stream, batch {batch}")
            text = f"batch {batch}: more arrives with the running mean than with the batch's"
            pairs.append((text, (ring, f"{ring}, divided by its mean")))
        pairs += [
            (
                f"radius {radius:g}: more arrives through the fake than with Re-DMD",
                (self._ring(radius, "full"), self._ring(radius, "full, Re-DMD")),
            )
            for radius in RADII
        ]
        return [
            Claim(
                text,
                (f"{first}: lam {HARD:g}", "share"),
                (f"{second}: lam {HARD:g}", "share"),
                higher=True,
            )
            for text, (first, second) in pairs
        ]

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
        return [*lines, ""]

    def _swept(self) -> list[str]:
        return [self._ring(radius, rollout) for radius in RADII for rollout in ROLLOUTS]

    def _compare(self, results: dict) -> None:
        """Add the share that is expected and the part of the log odds that arrives."""
        for row in self.rows():
            plain = results.get(f"{self._without(row)}: lam 0", [])
            for found, start in zip(results.get(row.name, []), plain):
                found["expected"] = tilted(start["share"], row.recipe.aimed)
                if row.recipe.aimed:
                    change = log_odds(found["share"]) - log_odds(start["share"])
                    found["arriving"] = change / row.recipe.aimed

    def _without(self, row: Row) -> str:
        """Return the group whose row of strength 0 has the same other settings."""
        group = row.group
        for suffix in (*ALONE, f", batch {self.base.batch}"):
            group = group.removesuffix(suffix)
        return group

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
        found = toy.samples(student, recipe.steps, generator, shift=recipe.shift, count=self.shares)
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


def tilted(share: float, strength: float) -> float:
    """Return the share of the rewarded samples of a law that is multiplied by exp(strength r).

    Args:
        share: Share without the reward.
        strength: Strength lam of a reward of 1.

    Returns:
        The share with the reward.
    """
    return 1 / (1 + math.exp(-(log_odds(share) + strength)))


def log_odds(share: float) -> float:
    """Return log(share / (1 - share)).

    Args:
        share: Share, above 0 and below 1.

    Returns:
        The log odds.
    """
    return math.log(share / (1 - share))
