"""TDM-R1 (arXiv 2603.07700) on the mixture of the other ablations."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from tdmvid.backbones.gaussian import VelocityNetwork
from tdmvid.config import OptimConfig
from tdmvid.parallel.engine import TorchEngine

from .rewarded import Rewarded, favoured
from .tdmr1 import Preferences, Surrogate, Turns
from .toy import toy


@dataclass(frozen=True)
class TDMR1(Preferences, Rewarded):
    """Settings of a distillation with TDM-R1."""

    lr_surrogate: float = 2e-3
    """Learning rate of the surrogate."""

    @property
    def aimed(self) -> float | None:
        """None: there is no strength that the result could be compared with."""
        return None

    @property
    def rewarded(self) -> bool:
        """False: the fake's loss is not weighted."""
        return False

    def turns(self, start: VelocityNetwork) -> Turns:
        """Return the iteration function.

        Args:
            start: Pretrained network, from which the surrogate starts; also the reference.

        Returns:
            The function.
        """
        surrogate, old = copy.deepcopy(start), copy.deepcopy(start)
        settings = OptimConfig(
            lr=self.lr_surrogate, betas=(0.9, 0.999), schedule="linear", clip=1.0
        )
        engine = TorchEngine(surrogate, settings, total_steps=self.iterations)
        nets = Surrogate(start, surrogate, old, (surrogate, old), engine, toy.NULL)
        return Turns(self, self.objective, nets, lambda samples, step: favoured(samples, []))
