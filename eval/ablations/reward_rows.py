"""Rows and claims of the ablation of rewards, which is in rewards.py."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tdmvid.config import TDMSettings

from .labelled import Labelled
from .page import Claim
from .rewarded import Raised, Rewarded
from .tdmr1_mixture import TDMR1
from .toy import Row, ToySuite, of_length

RADII = (1.5, 3.0)
ROLLOUTS = ("stream", "full")
STRENGTHS = (0.0, 1.0, 2.0, 3.0)
RATE = 6e-4
"""Learning rate of the student, twice that of the other ablations because runs are shorter."""
HARD = 2.0
"""Strength of the rows that vary something else."""
PART = 0.6
"""About the part of the strength that arrives with the default target."""
FOUND = {"normaliser": "teacher", "early": 0.1, "early_student": 0.1, "lr_surrogate": 6e-4}
SURROGATES = {
    "without a reward": {"weight": 0.0},
    "published settings": {},
    "changed settings, weight 2": {"weight": 2.0, **FOUND},
    "changed settings, weight 3": {"weight": 3.0, **FOUND},
}
"""Settings of TDM-R1 by row: the published ones, and the best that were found; see the page."""
LABELLED = ", two labelled fakes"
DEARER = 1.25
"""Processor time of an iteration with two labelled fakes, relative to one without."""
COMPARED = (", exact target", LABELLED, f", strength / {PART:g}")
"""Ends of the names of groups that are measured with all seeds, besides the sweep."""
ALONE = (", divided by its mean", ", Re-DMD", f", strength / {PART:g}", LABELLED)
"""Ends of the names of groups without a row of strength 0, which would be that of the others."""


class Few(Row):
    """A row that varies another setting, with fewer seeds."""

    most_seeds: ClassVar[int] = 2


class RewardRows(ToySuite):
    """Rows by strength, rollout, radius and other settings.

    Args:
        iterations: Iterations of every row; 0 for 600.
    """

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
            plain
            + varied
            + self._ceilings()
            + self._raised()
            + self._labelled()
            + self._smaller()
            + self._surrogates()
            + self._velocity()
        )

    def _ring(self, radius: float, what: str) -> str:
        return f"radius {radius:g}, {what}"

    def _row(
        self, group: str, strength: float, objective: dict, base: Rewarded | None = None, **changes
    ) -> Row:
        changed = replace(self.base.objective, **objective)
        if changed.rollout == "stream":
            changed = replace(changed, finished_predictions="stored")
        recipe = replace(base or self.base, objective=changed, strength=strength, **changes)
        plain = group in self._swept() or group.endswith(COMPARED)
        kind = Row if plain else Few
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

    def _velocity(self) -> list[Row]:
        """Return the exact target with the weight of v- and flow-networks over time."""
        exact = {"fake_target": "exact", "fake_weight": "velocity"}
        return [
            self._row(
                self._ring(radius, "stream, exact target, velocity weight"),
                strength,
                exact,
                radius=radius,
            )
            for radius in RADII
            for strength in (0.0, HARD)
        ]

    def _surrogates(self) -> list[Row]:
        """Return TDM-R1 in the same processor time, with the best settings that were found."""
        base = of_length(self._as(TDMR1), self.base.iterations // 2)
        return [
            Row(group, f"{group}: {name}", replace(base, radius=radius, **changes))
            for radius in RADII
            for group in [self._ring(radius, "TDM-R1")]
            for name, changes in SURROGATES.items()
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
        for text, one, other in (
            ("two labelled fakes than with x0_hat", f"{plain}{LABELLED}", plain),
            ("the exact target than with two labelled fakes", exact, f"{plain}{LABELLED}"),
            ("the strength raised than with x0_hat", f"{plain}, strength / {PART:g}", plain),
        ):
            pairs += [
                (
                    f"radius {radius:g}: more arrives with {text}",
                    (self._ring(radius, one), self._ring(radius, other)),
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

    def _swept(self) -> list[str]:
        return [self._ring(radius, rollout) for radius in RADII for rollout in ROLLOUTS]

    def _without(self, row: Row) -> str:
        """Return the group whose row of strength 0 has the same other settings."""
        group = row.group
        for suffix in (*ALONE, f", batch {self.base.batch}"):
            group = group.removesuffix(suffix)
        return group
