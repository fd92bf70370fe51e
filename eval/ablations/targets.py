"""The targets suite: what the fake regresses on, between the student's prediction and the exact
target.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tdmvid.diffusion.process import Process, broadcast
from tdmvid.distill.objective import Draw
from tdmvid.distill.tdm import TDM, exact_target, fresh_share

from .page import Claim
from .toy import Row, ToySuite, toy


@dataclass(frozen=True)
class Between(TDM):
    """TDM with the target x0_hat + (beta^2 / sigma^2)^power (x0* - x0_hat) of the fake.

    x0* - x0_hat = (a sigma / (alpha beta)) xi, with a = alpha_tau sigma_s / alpha_s and the part xi
    = (beta eps_hat - a eps) / sigma of the noise that x_tau does not show. It is noise with a small
    mean, the bias of x0_hat. A share of it, lambda, divides the noise's standard deviation by 1 /
    lambda and leaves 1 - lambda of the bias. With power 1 the deviation is at most a / alpha,
    however small the fresh noise is.
    """

    power: float = 1.0
    weighted: bool = True
    """Whether draws are weighted by beta^2 / sigma^2, as for the exact target."""

    def _target(self, draw: Draw, process: Process) -> tuple[Tensor, Tensor, Tensor]:
        """Return the target and two weights, as `TDM` does."""
        clean, share = draw.x0_hat.detach(), fresh_share(draw, process)
        target = clean + broadcast(share**self.power, clean) * (exact_target(draw, process) - clean)
        one = torch.ones_like(share)
        return target, share if self.weighted else one, one


class TargetsSuite(ToySuite):
    """The exact target, x0_hat and targets between them, for both processes."""

    page, title, suite = "ablations_targets.md", "Between x0_hat and the exact target", "targets"
    note = """The exact target is the score of the trajectory, but noisy. x0_hat is less noisy, and
biased. A target between them is x0_hat + lambda (exact - x0_hat), with lambda = (beta^2 /
sigma^2)^p, a power of the share of fresh noise in x_tau. Where this share is small the exact target
is noisiest, so lambda is small there. "unweighted" rows do not weigh the draws by beta^2 / sigma^2,
as all others except x0_hat do.

For Gaussian data of variance 1 on CogVideoX's uniform grid, the states' deviation relative to the
truth after steps 1 to 4 is 1, 1, 1, 1 with the exact target; 1.005, 1.027, 1.080, 1 with x0_hat;
and 1.002, 1.012, 1.037, 1 with p = 1 (tests/distill/test_fixed_point.py).

Distances are sliced W2 to the data. `mass` is the total variation between the modes' shares and the
data's."""

    def settings(self) -> dict:
        """Return the settings that all rows share, and the shifts of both processes.

        Returns:
            Settings by name.
        """
        return super().settings() | {
            "process": " and ".join(toy.PROCESSES),
            "shift": " and ".join(str(toy.SHIFTS[kind]) for kind in toy.PROCESSES),
        }

    def rows(self) -> list[Row]:
        """Return every target for both processes.

        Returns:
            Rows of the table.
        """
        shared = {
            name: getattr(self.base.objective, name)
            for name in ("rollout", "distance", "fresh_noise", "snr_ceiling")
        }
        targets = {
            "exact": TDM(**shared, fake_target="exact"),
            "x0_hat": TDM(**shared, importance="none"),
            "p = 0.5": Between(**shared, power=0.5),
            "p = 1": Between(**shared),
            "p = 1, unweighted": Between(**shared, weighted=False),
            "p = 2, unweighted": Between(**shared, power=2.0, weighted=False),
        }
        return [
            Row(
                kind,
                f"{kind}: {name}",
                replace(self.base, shift=toy.SHIFTS[kind], objective=objective),
            )
            for kind in toy.PROCESSES
            for name, objective in targets.items()
        ]

    def claims(self) -> list[Claim]:
        """Return the claims that p = 1 beats both of its ends.

        Returns:
            Claims to check.
        """
        return [
            Claim(
                f"{kind}: p = 1 beats {other}",
                *((f"{kind}: {n}", "4/ddim") for n in ("p = 1", other)),
            )
            for kind in toy.PROCESSES
            for other in ("exact", "x0_hat")
        ]

    def measure(self, row: Row, seed: int) -> dict:
        """Distil a row with the process of its group.

        Args:
            row: Row of the table.
            seed: Seed of the run.

        Returns:
            Values by column.
        """
        process = toy.PROCESSES[row.group]()
        if type(process) is not type(self.process):
            self.process, self._starts = process, {}
        return super().measure(row, seed)
