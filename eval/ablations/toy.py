"""The toy suite: every row distils the mixture of eight Gaussians from the exact teacher in a few
seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch

from benchmarks import toy
from benchmarks.toy_score import samples
from tdmvid.backbones.gaussian import ExactDenoiser
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.gan import GAN

from .networks import consistent, recall
from .page import Claim, Table

SET = (1, 2, 4, 8)
RATES = {
    "l2": 3e-4,
    "huber": 3e-4,
    "huber_vector": 3e-4,
    "fisher": 3e-4,
    "dmd2": 1e-3,
    "dmd2, long": 3e-4,
}
"""Learning rates of the student, chosen on seeds that are not reported: the lowest rate within 0.01
of the best result of `--suite rates`; for DMD2 the rate with the lowest mean in `dmd2_rates`.
"""
LONG = 4000
"""Iterations of the longest run of the baseline."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    group: str
    name: str
    recipe: object
    solvers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (4,)
    curve: str = ""
    """Name of the line in the plot that the row is a point of."""
    repair: bool = False
    most_seeds: ClassVar[int] = 0
    """Number of seeds that the row is measured with at most; 0 for all."""


def of_length(recipe, iterations: int):
    """Return a recipe with another number of iterations.

    The learning rate decays to zero at the end, and the EMA averages over about the last fifth.

    Args:
        recipe: The recipe.
        iterations: Number of iterations.

    Returns:
        A new recipe.
    """
    return replace(recipe, iterations=iterations, ema=max(0.0, 1 - 5 / iterations))


class ToySuite(Table):
    """Networks of width 64 and a batch of 256: small enough to run all rows with many seeds on one
    core.

    Args:
        iterations: Iterations of every row; 0 for 1,000.
    """

    page, title = "ablations.md", "Ablations on the mixture of Gaussians"
    note = (
        "Distances are sliced W2 to the data, of 20,000 samples. `mass` is the total"
        " variation between the modes' shares and the data's (chance alone: 0.003)."
        " `missing` is the number of modes with less than a fifth of their share."
        " `precision` is the share of samples within three deviations of a mode; `recall`"
        " uses three nearest neighbours. `calls` are forward passes of all networks, in"
        " batches. `spikes` is the largest divided by the median gradient norm of the"
        " student, in the second half of training. A row changes what its name says and"
        " nothing else. The row TDM has the target `exact`, the distance `l2` and `fresh_noise`"
        " 0.1, which are not tdmvid's defaults; the row `x0_hat, importance mean` has the default"
        " target. The student's learning rate is chosen for each objective and distance, on another"
        " seed ([rates](ablations_rates.md)). TDM beside DMD2 is on"
        " [a page of later runs](ablations_dmd2.md)."
    )
    columns: ClassVar[dict[str, str]] = {
        "before": "before",
        "1/ddim": "1 step",
        "2/ddim": "2 steps",
        "4/ddim": "4 steps",
        "8/ddim": "8 steps",
        "4/dpm++": "4 steps, DPM++",
        "4/renoise": "4 steps, renoised",
        "state": "state",
        "mass": "mass",
        "missing": "missing",
        "precision": "precision",
        "recall": "recall",
        "calls": "calls",
        "spikes": "spikes",
    }
    suite = "toy"
    count, sets, shares = 20_000, 2, 100_000
    """Number of samples for a distance, sets of data that it is averaged over, number of samples
    for the shares of modes.
    """

    def __init__(self, iterations: int = 0):
        base = toy.Recipe(width=64, batch=256, shift=toy.SHIFTS["vp"], lr_student=RATES["l2"])
        self.base = of_length(base, iterations or 1000)
        self.process = toy.stable_diffusion()
        self._starts: dict = {}

    def settings(self) -> dict:
        """Return the settings that all rows share. Results with other settings are not mixed with
        these.

        Returns:
            Settings by name.
        """
        recipe = asdict(self.base)
        shared = {k: recipe[k] for k in ("shift", "iterations", "batch", "width", "lr_fake", "ema")}
        return {"suite": self.suite, "samples": self.count, "process": "vp"} | shared

    def rows(self) -> list[Row]:
        """Return the rows in the order of the table.

        Returns:
            Rows of the table.
        """
        base, biased = self.base, {"fake_target": "x0_hat"}
        rows = [
            Row("match", "TDM", base, ("ddim", "dpm++")),
            Row("match", "match clean", self._of(match="clean")),
            Row("fake's target", "x0_hat, importance mean", self._of(**biased, importance="mean")),
            Row("fake's target", "x0_hat, importance sum", self._of(**biased, importance="sum")),
            Row("fake's target", "x0_hat, no importance", self._of(**biased, importance="none")),
            Row("divergence", "Fisher", self._method(Fisher)),
            Row("baseline", "TDM + GAN", self._method(GAN, distance="l2", adversarial="logistic")),
            Row("unify", "TDM-unify", self._of(step_set=SET), steps=SET),
            Row(
                "unify", "TDM-unify without K", self._of(step_set=SET, k_condition=False), steps=SET
            ),
            Row(
                "solver",
                "trained with DPM-Solver++",
                self._of(solver="dpm++"),
                solvers=("ddim", "dpm++"),
            ),
            Row("repair", "consistency start, 100 iterations", of_length(base, 100), repair=True),
            *(
                Row("distance", distance, self._of(distance=distance))
                for distance in ("huber", "huber_vector")
            ),
        ]
        return rows

    def _of(self, **changes):
        distance = changes.get("distance", "l2")
        return replace(
            self.base, objective=replace(self.base.objective, **changes), lr_student=RATES[distance]
        )

    def _method(self, kind: type, **changes):
        """Return another objective with the same settings as TDM."""
        ours = self.base.objective
        shared = {
            "rollout": "full",
            "fake_target": "exact",
            "fresh_noise": ours.fresh_noise,
            "snr_ceiling": ours.snr_ceiling,
        }
        return replace(
            self.base,
            objective=kind(**shared | changes),
            lr_student=RATES.get(kind.__name__.lower(), RATES["l2"]),
        )

    def _dmd2(self, iterations: int):
        """Return DMD2 with its best grid and distance: the uniform grid and l2."""
        recipe = of_length(replace(self._method(DMD2, distance="l2"), shift=1.0), iterations)
        return replace(recipe, lr_student=RATES["dmd2" if iterations < LONG else "dmd2, long"])

    def claims(self) -> list[Claim]:
        """Return the claims of the paper's tables that a mixture of Gaussians can test, and further
        ones.

        Returns:
            Claims to check.
        """
        return [*_claims_of_the_paper(), *_further_claims()]

    def measure(self, row: Row, seed: int) -> dict:
        """Distil a row, sample, and compare with the data.

        Args:
            row: Row of the table.
            seed: Seed of the run.

        Returns:
            Values by column.
        """
        recipe, norms, calls = replace(row.recipe, seed=seed), [], 0
        start = self._start(recipe)
        student = None
        figures: dict = {}
        if row.repair:
            student = consistent(start, ExactDenoiser(recipe.data(), self.process))
            figures["before"] = self._score(student, recipe, 4, "ddim")

        def on_step(done, averaged, made, scalars):
            nonlocal calls
            calls = made
            norms.append(scalars["grad_norm/student"])

        student = toy.distil(self.process, recipe, start=start, student=student, on_step=on_step)
        for steps in row.steps:
            for solver in row.solvers:
                figures[f"{steps}/{solver}"] = self._score(student, recipe, steps, solver)
        tail = torch.tensor(norms[len(norms) // 2 :])
        figures |= {"calls": float(calls), "spikes": (tail.max() / tail.median()).item()}
        return figures | self._modes(student, recipe, row.solvers[0])

    def _start(self, recipe):
        key = recipe.seed, recipe.objective.conditioned_on_steps, recipe.mixture
        if key not in self._starts:
            self._starts[key] = toy.pretrained(self.process, recipe)
        return self._starts[key]

    def _score(self, student, recipe, steps: int, solver: str) -> float:
        return toy.score(
            student,
            steps,
            shift=recipe.shift,
            sets=self.sets,
            count=self.count,
            solver=solver,
            mixture=recipe.data(),
        )

    def _modes(self, student, recipe, solver: str) -> dict:
        """Return the columns mass, missing, precision and recall, sampled in `recipe.steps`
        steps.
        """
        generator, mixture = torch.Generator().manual_seed(7), recipe.data()
        found = samples(
            student, recipe.steps, generator, shift=recipe.shift, count=self.shares, solver=solver
        )
        distance = torch.cdist(found, mixture.means)
        share = torch.bincount(distance.argmin(1), minlength=len(mixture.means)) / self.shares
        return {
            "mass": ((share - mixture.weights).abs().sum() / 2).item(),
            "missing": float((share < mixture.weights / 5).sum()),
            "precision": (distance.min(1).values < 3 * mixture.std).float().mean().item(),
            "recall": recall(found[:2000], mixture.sample(2000, generator)),
        }


def _claims_of_the_paper() -> list[Claim]:
    ours = "TDM"
    mean, none = "x0_hat, importance mean", "x0_hat, no importance"
    trained = {"DDIM": ours, "DPM": "trained with DPM-Solver++"}
    return [
        Claim("noisy matching beats clean (Table 8)", (ours, "4/ddim"), ("match clean", "4/ddim")),
        Claim("importance weights help (Table 5)", (mean, "4/ddim"), (none, "4/ddim")),
        Claim("importance weights keep modes (Fig. 9)", (mean, "mass"), (none, "mass")),
        Claim(
            "Fisher is at least equal to KL (Table 9)",
            ("Fisher", "4/ddim"),
            (ours, "4/ddim"),
            strict=False,
        ),
        Claim(
            "unify: K helps at 1 step",
            ("TDM-unify", "1/ddim"),
            ("TDM-unify without K", "1/ddim"),
        ),
        *(
            Claim(
                f"testing with DPM-Solver++ is at least equal, {kind}-trained (Table 7)",
                (row, "4/dpm++"),
                (row, "4/ddim"),
                strict=False,
            )
            for kind, row in trained.items()
        ),
    ]


def _further_claims() -> list[Claim]:
    ours = "TDM"
    return [
        Claim(
            "100 iterations repair a consistency start",
            ("consistency start, 100 iterations", "4/ddim"),
            ("consistency start, 100 iterations", "before"),
        ),
        Claim(
            "huber_vector, its surrogate, is at least equal to l2",
            ("huber_vector", "4/ddim"),
            (ours, "4/ddim"),
            strict=False,
        ),
        Claim(
            "huber_vector has fewer spikes of the gradient than l2",
            ("huber_vector", "spikes"),
            (ours, "spikes"),
        ),
        Claim(
            "(not the paper's) the exact target beats x0_hat with the released weights",
            (ours, "4/ddim"),
            ("x0_hat, importance mean", "4/ddim"),
        ),
    ]
