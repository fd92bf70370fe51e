"""Test when importance weights matter (arXiv 2503.06674, Table 5 and Fig. 9), by what the fake
regresses on.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tdmvid.backbones.gaussian import sliced_wasserstein
from tdmvid.diffusion.denoiser import Cond
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import rollout

from .page import Claim
from .toy import Row, ToySuite

TARGETS = {
    "none": {"fake_target": "x0_hat", "importance": "none"},
    "mean": {"fake_target": "x0_hat", "importance": "mean"},
    "sum": {"fake_target": "x0_hat", "importance": "sum"},
    "exact": {"fake_target": "exact"},
}
LATE = 0.1
"""Shift of a grid whose last step starts at a noise of 0.17, where the circle's modes are already
separated.
"""


class ImportanceSuite(ToySuite):
    """Every regime without weights, with the released mean, with the exact sum, and with the exact
    target, which needs no weights.
    """

    page, title, suite = "ablations_importance.md", "Where importance weights matter", "importance"
    note = """A fake that regresses on x0_hat sees x_tau. x_tau contains x_s, which contains what is
left of the noise that x0_hat was predicted from. The fake therefore learns the mean of x0_hat given
x_tau *on the trajectory*. This was predicted before the suite was run:

- The last step has s = 0. Its x_tau contains fresh noise only, every weight is 1, and all targets
  are equal. Only the states before it can be wrong, and the last step repairs what it can.
- The smaller the share of fresh noise in x_tau, the better the fake recognises x0_hat. In the
  limit it returns x0_hat itself. The student's gradient is then teacher - x0_hat, nothing spreads
  its states, and steps before the last become the teacher's own, means of modes.
- Weights should therefore have no effect if the last step starts at much noise and remakes the
  sample (the plain grids of 4 and 2 steps). They should matter if the modes separate before it (a
  small shift of the grid), with more steps, narrower segments and little fresh noise.
- Weighted by the exact ratio (`sum`), the law of (x0_hat, x_tau) is that of clean predictions
  with independent noise. The fake is then the score of noised predictions, as in `match:
  "clean"`, not of the trajectory. Only the `exact` target has the trajectory's own.

`state` is the sliced W2 of the states before the last step to noised data. `mass` is the total
variation between the modes' shares and the data's (chance alone: 0.003 for 8 modes). `missing` is
the number of modes with less than a fifth of their share."""

    def rows(self) -> list[Row]:
        """Return all combinations of regimes and targets.

        Returns:
            Rows of the table.
        """
        rows = []
        for regime, recipe in self.regimes().items():
            for target, changes in TARGETS.items():
                steps = recipe.steps
                changed = replace(recipe, objective=replace(recipe.objective, **changes))
                rows.append(Row(regime, f"{regime}: {target}", changed, steps=(steps,)))
        return rows

    def regimes(self) -> dict:
        """Return the regimes.

        Returns:
            Recipes by description.
        """
        base, late = self.base, replace(self.base, shift=LATE)
        near = {"randmid": True, "margin_low": 0.0, "margin_high": 0.0, "fresh_noise": 0.0}
        return {
            "4 steps": base,
            "2 steps": replace(base, steps=2),
            "4 steps, modes parted before the last": late,
            "8 steps, modes parted before the last": replace(late, steps=8, shift=2 * LATE),
            "4 steps, modes parted, little fresh noise": replace(
                late, objective=replace(late.objective, **near)
            ),
            "25 modes, 4 steps": replace(base, mixture="grid"),
        }

    def claims(self) -> list[Claim]:
        """Return the claims for each regime: weights keep the shares of modes and improve the
        states, and the exact target keeps the shares.

        Returns:
            Claims to check.
        """
        pairs = [
            ("weights keep shares", "mean", "mass"),
            ("weights improve states", "mean", "state"),
            ("the exact target keeps shares", "exact", "mass"),
        ]
        return [
            Claim(f"{regime}: {text}", (f"{regime}: {target}", figure), (f"{regime}: none", figure))
            for regime in self.regimes()
            for text, target, figure in pairs
        ]

    def _modes(self, student, recipe, solver: str) -> dict:
        """Also return the distance of the states before the last step."""
        generator, grid = (
            torch.Generator().manual_seed(8),
            shifted(recipe.steps, recipe.shift, self.process),
        )
        z, first = (
            torch.randn(self.count, 2, generator=generator),
            torch.ones(self.count, dtype=torch.long),
        )
        state = rollout(student, z, Cond({}), grid, first, calls=grid.steps - 1)
        data = recipe.data().sample(self.count, generator)
        noised = self.process.noise(data, torch.randn(data.shape, generator=generator), state.upper)
        return super()._modes(student, recipe, solver) | {
            "state": sliced_wasserstein(state.x, noised)
        }
