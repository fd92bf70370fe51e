"""The toy suite: every row distils the mixture of eight Gaussians from the exact teacher, a few seconds each."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tdmvid.backbones.gaussian import ExactDenoiser, Mixture
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.sampler import ddim_step
from tdmvid.distill.dmd2 import DMD2
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.gan import GAN
from tdmvid.distill.tdm import TDM

from .page import Claim

_SPEC = importlib.util.spec_from_file_location("toy", Path(__file__).resolve().parents[2] / "benchmarks" / "toy.py")
toy = sys.modules["toy"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(toy)

COUNT, SETS = 10_000, 2
SET = (1, 2, 4, 8)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    recipe: object
    solvers: tuple[str, ...] = ("ddim",)
    steps: tuple[int, ...] = (4,)
    curve: bool = False
    repair: bool = False


class ToySuite:
    """Width 64, batch 256: small enough for three seeds of all rows on one core."""

    page, title = "ablations.md", "Ablations on the mixture of Gaussians"
    note = (
        "Distances are sliced W2 to the data. `mass` is the total variation between the modes' shares and the data's, `precision` the"
        " share of samples within three deviations of a mode, `recall` by three nearest neighbours; `calls` are forward passes of all"
        " networks, in batches; `spikes` is the largest over the median gradient norm of the student, second half of training."
        " `fresh_noise` is 0.1 throughout and without effect on this process, whose first draw has more noise than that."
        " The network is small and the seeds spread widely (the teacher's own 4 steps: 0.21), so only large effects can show here. In the"
        " plot TDM's distance stops falling long before its end and then rises for some seeds, while DMD2's still falls at its own end: the"
        " figures at the end are no limits of either, and the calls until TDM is as near depend on where DMD2 was stopped."
    )
    columns = {
        "before": "before", "1/ddim": "1 step", "2/ddim": "2 steps", "4/ddim": "4 steps", "8/ddim": "8 steps", "4/dpm++": "4 steps, DPM++",
        "4/renoise": "4 steps, renoised", "mass": "mass", "precision": "precision", "recall": "recall", "calls": "calls", "spikes": "spikes",
    }

    def __init__(self, iterations: int = 0):
        base = toy.Recipe(width=64, batch=256)
        self.base = replace(base, iterations=iterations or 500, lr_student=5e-4)
        self.process = toy.stable_diffusion()
        self._starts: dict = {}

    def settings(self) -> dict:
        """What all rows share; results of other settings are not mixed with these."""
        recipe = asdict(self.base)
        return {"suite": "toy", "samples": COUNT, "process": "vp"} | {k: recipe[k] for k in ("iterations", "batch", "width", "lr_student", "lr_fake", "ema")}

    def rows(self) -> list[Row]:
        """In the order of the table."""
        base = self.base
        of = lambda **changes: replace(base, objective=replace(base.objective, **changes))  # noqa: E731
        biased = {"fake_target": "x0_hat"}
        unify = {"step_set": SET}
        full = {"rollout": "full", "fresh_noise": base.objective.fresh_noise}
        rows = [
            Row("match", "TDM", base, curve=True),
            Row("match", "match clean", of(match="clean")),
            Row("fake's target", "x0_hat, importance mean", of(**biased, importance="mean")),
            Row("fake's target", "x0_hat, importance sum", of(**biased, importance="sum")),
            Row("fake's target", "x0_hat, no importance", of(**biased, importance="none")),
            Row("fake's target", "the released code's defaults", replace(base, objective=TDM(rollout="full"))),
            Row("divergence", "Fisher", replace(base, objective=Fisher(**full))),
            Row("baseline", "DMD2, 5 fake updates", replace(base, objective=DMD2(rollout="full")), solvers=("renoise",), curve=True),
            Row("baseline", "TDM + GAN", replace(base, objective=GAN(**full, fake_target="exact", distance="l2", adversarial="logistic"))),
            Row("unify", "TDM-unify", of(**unify), steps=SET),
            Row("unify", "TDM-unify without K", of(**unify, k_condition=False), steps=SET),
            Row("solver", "trained with DDIM", base, solvers=("ddim", "dpm++")),
            Row("solver", "trained with DPM-Solver++", of(solver="dpm++"), solvers=("ddim", "dpm++")),
            Row("repair", "consistency start, 100 iterations", replace(base, iterations=100), repair=True),
        ]
        for distance in ("huber", "huber_vector", "l2"):
            for rate in (2e-4, 1e-3):
                changed = of(distance=distance)
                rows.append(Row("distance", f"{distance}, lr {rate:g}", replace(changed, lr_student=rate)))
        return rows

    def claims(self) -> list[Claim]:
        """The paper's tables, as far as a mixture of Gaussians can speak to them."""
        ours, dmd2 = "TDM", "DMD2, 5 fake updates"
        mean, none = "x0_hat, importance mean", "x0_hat, no importance"
        return [
            Claim("noisy matching beats clean (Table 8)", (ours, "4/ddim"), ("match clean", "4/ddim")),
            Claim("importance weights help (Table 5)", (mean, "4/ddim"), (none, "4/ddim")),
            Claim("importance weights keep modes (Fig. 9)", (mean, "mass"), (none, "mass")),
            Claim("Fisher is at least equal to KL (Table 9)", ("Fisher", "4/ddim"), (ours, "4/ddim"), strict=False),
            Claim("TDM ends nearer than DMD2", (ours, "4/ddim"), (dmd2, "4/renoise")),
            Claim("TDM's recall is above DMD2's (Table 6)", (ours, "recall"), (dmd2, "recall"), higher=True),
            Claim("unify: K helps at 1 step", ("TDM-unify", "1/ddim"), ("TDM-unify without K", "1/ddim")),
            Claim("testing with DPM-Solver++ is at least equal, DDIM-trained (Table 7)", ("trained with DDIM", "4/dpm++"), ("trained with DDIM", "4/ddim"), strict=False),
            Claim(
                "the same, DPM-trained (Table 7)", ("trained with DPM-Solver++", "4/dpm++"), ("trained with DPM-Solver++", "4/ddim"), strict=False
            ),
            Claim("100 iterations repair a consistency start", ("consistency start, 100 iterations", "4/ddim"), ("consistency start, 100 iterations", "before")),
        ]

    def measure(self, row: Row, seed: int) -> dict:
        """Distil, sample, compare with the data."""
        recipe, norms, curve = replace(row.recipe, seed=seed), [], []
        start = self._start(recipe)
        student = None
        figures: dict = {}
        if row.repair:
            student = consistent(start, ExactDenoiser(Mixture.circle(), self.process))
            figures["before"] = self._score(student, 4, "ddim")
        marks = {int(recipe.iterations * share) for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)} if row.curve else set()
        calls = 0

        def on_step(done, averaged, made, scalars):
            nonlocal calls
            calls = made
            norms.append(scalars["grad_norm/student"])
            if done in marks:
                curve.append([made, self._score(averaged(), 4, row.solvers[0])])

        student = toy.distil(self.process, recipe, start=start, student=student, on_step=on_step)
        for steps in row.steps:
            for solver in row.solvers:
                figures[f"{steps}/{solver}"] = self._score(student, steps, solver)
        tail = torch.tensor(norms[len(norms) // 2 :])
        figures |= {"calls": float(calls), "spikes": (tail.max() / tail.median()).item()} | ({"curve": curve} if curve else {})
        return figures | self._modes(student, row.solvers[0])

    def _start(self, recipe):
        key = recipe.seed, recipe.objective.told_steps
        if key not in self._starts:
            self._starts[key] = toy.pretrained(self.process, recipe)
        return self._starts[key]

    def _score(self, student, steps: int, solver: str) -> float:
        return toy.score(student, steps, sets=SETS, count=COUNT, solver=solver)

    def _modes(self, student, solver: str) -> dict:
        """mass: total variation of the modes' shares; precision: within 3 deviations of a mode; recall: by 3 nearest neighbours."""
        generator, mixture = torch.Generator().manual_seed(7), Mixture.circle()
        found = toy.samples(student, 4, generator, count=COUNT, solver=solver)
        distance = torch.cdist(found, mixture.means)
        share = torch.bincount(distance.argmin(1), minlength=len(mixture.means)) / COUNT
        return {
            "mass": ((share - mixture.weights).abs().sum() / 2).item(),
            "precision": (distance.min(1).values < 3 * mixture.std).float().mean().item(),
            "recall": recall(found[:2000], mixture.sample(2000, generator)),
        }


def recall(found: Tensor, data: Tensor, neighbours: int = 3) -> float:
    """Share of the data within the manifold of the samples: nearer to one than its own k-th neighbour (arXiv 1904.06991)."""
    radius = torch.cdist(found, found).kthvalue(neighbours + 1, 1).values
    return (torch.cdist(data, found) <= radius).any(1).float().mean().item()


def consistent(start, teacher, iterations: int = 800):
    """A student like one of consistency distillation: from each state it jumps to the end of the teacher's path of 16 steps.

    Trained by regression on those ends, with a learning rate that does not fall: a rough start, and meant to be.
    """
    student, generator, process = copy.deepcopy(start), torch.Generator().manual_seed(3), teacher.process
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
