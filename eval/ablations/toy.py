"""The toy suite: every row distils the mixture of eight Gaussians from the exact teacher, a few
seconds each.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tdmvid.backbones.gaussian import ExactDenoiser
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.sampler import ddim_step
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.gan import GAN

from .page import Claim

_SPEC = importlib.util.spec_from_file_location(
    "toy", Path(__file__).resolve().parents[2] / "benchmarks" / "toy.py"
)
toy = sys.modules["toy"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)

SET = (1, 2, 4, 8)
RATES = {
    "l2": 3e-4,
    "huber": 3e-4,
    "huber_vector": 3e-4,
    "fisher": 3e-4,
    "dmd2": 1e-3,
    "dmd2, long": 3e-4,
}
"""The student's, on seeds that are not reported: the lowest within 0.01 of its best by `--suite
rates`; DMD2's of the lowest mean by `dmd2_rates`.
"""
LONG = 4000
"""Iterations of the baseline's longest run."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    recipe: object
    solvers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (4,)
    curve: str = ""
    """The line of the plot that it is a point of."""
    repair: bool = False


def of_length(recipe, iterations: int):
    """The same recipe over `iterations`, whose learning rates fall to zero at its end; averaged
    over about its last fifth.
    """
    return replace(recipe, iterations=iterations, ema=1 - 5 / iterations)


class ToySuite:
    """Width 64, batch 256: small enough for many seeds of all rows on one core."""

    page, title = "ablations.md", "Ablations on the mixture of Gaussians"
    note = (
        "Distances are sliced W2 to the data, of 20,000 samples. `mass` is the total"
        " variation between the modes' shares and the data's (chance alone: 0.003)."
        " `missing` is the number of modes with less than a fifth of their share."
        " `precision` is the share of samples within three deviations of a mode; `recall`"
        " uses three nearest neighbours. `calls` are forward passes of all networks, in"
        " batches. `spikes` is the largest divided by the median gradient norm of the"
        " student, in the second half of training. A row changes what its name says and"
        " nothing else. The student's learning rate is chosen for each objective and"
        " distance, on another seed ([rates](ablations_rates.md)). TDM beside DMD2 is on"
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
    """Samples of a distance, sets of data it is averaged over, samples that the modes' shares are
    counted on.
    """

    def __init__(self, iterations: int = 0):
        base = toy.Recipe(width=64, batch=256, shift=toy.SHIFTS["vp"], lr_student=RATES["l2"])
        self.base = of_length(base, iterations or 1000)
        self.process = toy.stable_diffusion()
        self._starts: dict = {}

    def settings(self) -> dict:
        """What all rows share; results of other settings are not mixed with these."""
        recipe = asdict(self.base)
        shared = {k: recipe[k] for k in ("shift", "iterations", "batch", "width", "lr_fake", "ema")}
        return {"suite": self.suite, "samples": self.count, "process": "vp"} | shared

    def rows(self) -> list[Row]:
        """In the order of the table."""
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
        """Another objective under the settings that TDM has here."""
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
        """On the grid and with the distance that are its best: the uniform grid, l2."""
        recipe = of_length(replace(self._method(DMD2, distance="l2"), shift=1.0), iterations)
        return replace(recipe, lr_student=RATES["dmd2" if iterations < LONG else "dmd2, long"])

    def claims(self) -> list[Claim]:
        """The paper's tables, as far as a mixture of Gaussians can speak to them."""
        return [*_claims_of_the_paper(), *_further_claims()]

    def curves(self, results: dict) -> dict[str, list[list[tuple[float, float]]]]:
        """The plot's lines: none here."""
        return {}

    def sections(self, results: dict) -> list[str]:
        """Nothing beside the table."""
        return []

    def measure(self, row: Row, seed: int) -> dict:
        """Distil, sample, compare with the data."""
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
        """What the note says of mass, missing, precision and recall, in `recipe.steps` steps."""
        generator, mixture = torch.Generator().manual_seed(7), recipe.data()
        found = toy.samples(
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


class RatesSuite(ToySuite):
    """Which learning rate of the student each method is shown at; on seeds of its own."""

    page, title, suite = "ablations_rates.md", "Learning rates of the ablations", "rates"
    note = (
        "Distances are sliced W2 to the data. The ablations use other seeds and take each"
        " method's lowest rate within 0.01 of its best. Runs differ by that much, and at"
        " a high rate the modes' shares drift. DMD2's runs differ by more. Only its"
        " distance and grid are chosen here, and its rate by the mean over three seeds"
        " ([its rates](ablations_dmd2_rates.md))."
    )

    def rows(self) -> list[Row]:
        """Methods by four rates; the baseline by its distance and grid too."""
        rows = []
        for name, recipe in self._methods().items():
            baseline = name.startswith("dmd2")
            rates, solver = (
                ((3e-4, 1e-3, 3e-3, 1e-2), "renoise")
                if baseline
                else ((1e-4, 3e-4, 1e-3, 3e-3), "ddim")
            )
            rows += [
                Row(name, f"{name}, lr {rate:g}", replace(recipe, lr_student=rate), (solver,))
                for rate in rates
            ]
        long = self._dmd2(LONG)
        name = f"dmd2, l2, uniform grid, {long.iterations} iterations"
        rows += [
            Row(name, f"{name}, lr {rate:g}", replace(long, lr_student=rate), ("renoise",))
            for rate in (3e-4, 1e-3, 3e-3)
        ]
        return rows

    def _methods(self) -> dict:
        plain, huber = self._method(DMD2, distance="l2"), self._method(DMD2, distance="huber")
        return {
            **{
                distance: self._of(distance=distance)
                for distance in ("l2", "huber", "huber_vector")
            },
            "fisher": self._method(Fisher),
            "dmd2, l2": plain,
            "dmd2, huber": huber,
            "dmd2, l2, uniform grid": replace(plain, shift=1.0),
            "dmd2, huber, uniform grid": replace(huber, shift=1.0),
        }

    def claims(self) -> list[Claim]:
        """None: this page decides nothing but rates."""
        return []


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


def recall(found: Tensor, data: Tensor, neighbours: int = 3) -> float:
    """Share of the data within the manifold of the samples: nearer to one than its own k-th
    neighbour (arXiv 1904.06991).
    """
    radius = torch.cdist(found, found).kthvalue(neighbours + 1, 1).values
    return (torch.cdist(data, found) <= radius).any(1).float().mean().item()


def consistent(start, teacher, iterations: int = 800):
    """A student like one of consistency distillation: from each state it jumps to the end of the
    teacher's path of 16 steps.

    Trained by regression on those ends, with a learning rate that does not fall: a rough start, and
    meant to be.
    """
    student, generator, process = (
        copy.deepcopy(start),
        torch.Generator().manual_seed(3),
        teacher.process,
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=5e-4)
    grid = toy.shifted(16, 1.0, process)
    for _ in range(iterations):
        z = torch.randn(256, 2, generator=generator)
        states, x = [], z
        with torch.no_grad():
            for k in range(grid.steps, 0, -1):
                t, s = (torch.full((256,), grid.times[i]) for i in (k, k - 1))
                states.append((x, t))
                x = ddim_step(process, x, teacher(x, t, Cond({})), t, s)
        at, t = states[int(torch.randint(16, (1,), generator=generator))]
        loss = (student(at, t, Cond({})) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student
