"""TDM with an adversarial term on noised latents (arXiv 2503.06674, TDM-unify-GAN).

Besides the two scores, a discriminator D tells x_tau of the student's trajectory, law q, from real
latents noised to the same tau, law p. It is told tau, and K where K is drawn from a set.

    logistic   L_D = E_p softplus(-D) + E_q softplus(D),      L_G = E_q softplus(-D)
    hinge      L_D = E_p relu(1 - D) + E_q relu(1 + D),       L_G = -E_q D

L_D of the logistic loss is least at D = log p(x_tau) - log q(x_tau), the log ratio whose gradient
is the difference of scores that TDM follows: the two terms agree, and D sees real data where the
teacher is only a model of them. The generator's gradient passes through x_tau into x0_hat alone
(`Draw.slope`); neither discriminator nor features see any of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ..config import GANSettings
from ..diffusion.denoiser import Cond
from ..diffusion.process import Process, broadcast
from ..diffusion.sampler import Trajectory
from .objective import Draw, Roles, register
from .tdm import TDM

SCALE = 2.0**15
"""Of the gradient inside the discriminator: an element's share of a logit is too small for float16.
"""


@dataclass(frozen=True)
class RealDraw(Draw):
    """A draw, and what picks real latents beside it and noises them."""

    pick: Tensor = field(kw_only=True)
    """[B], uniform in [0, 1): see `Roles.real`."""
    real_eps: Tensor = field(kw_only=True)


@register
class GAN(GANSettings, TDM):
    """TDM with an adversarial term."""

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> RealDraw:
        """TDM's draw, and a random choice of real latents and noise for them."""
        draw = super().draw(path, x0_hat, generator, process)
        pick = torch.rand(len(x0_hat), generator=generator, device=x0_hat.device)
        real_eps = torch.randn(x0_hat.shape, generator=generator, device=x0_hat.device)
        return RealDraw(**vars(draw), pick=pick, real_eps=real_eps)

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Return TDM's losses; the discriminator's compares the draw with real latents at tau."""
        if role == "discriminator":
            assert isinstance(draw, RealDraw)
            return self._discriminator(roles, draw, cond)
        terms = super().loss(role, roles, draw, cond)
        if role == "fake":
            return terms
        value, surrogate = self._generator(roles, draw, cond)
        return terms | {
            "loss": terms["loss"] + self.weight * (value + surrogate - surrogate.detach()),
            "adversarial": value,
        }

    def _discriminator(self, roles: Roles, draw: RealDraw, cond: Cond) -> dict[str, Tensor]:
        assert roles.real is not None and roles.discriminator is not None
        real = roles.fake.process.noise(roles.real(draw.pick), draw.real_eps, draw.tau)
        both = torch.cat([real, draw.x_tau]), draw.tau.repeat(2), Cond.cat([cond, cond])
        of_real, of_fake = roles.discriminator(*both).chunk(
            2
        )  # in one call, which an engine may take for a training step
        if self.adversarial == "hinge":
            loss = relu(1 - of_real).mean() + relu(1 + of_fake).mean()
        else:
            loss = softplus(-of_real).mean() + softplus(of_fake).mean()
        right = ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        return {"loss": loss, "right": right}

    def _generator(self, roles: Roles, draw: Draw, cond: Cond) -> tuple[Tensor, Tensor]:
        """L_G, without a graph, and what has its gradient in x0_hat."""
        assert roles.discriminator is not None and draw.slope is not None
        with torch.enable_grad():
            x = draw.x_tau.detach().requires_grad_()
            logit = roles.discriminator(x, draw.tau, cond)
            value = -logit if self.adversarial == "hinge" else softplus(-logit)
            along = torch.autograd.grad(SCALE * value.sum(), x)[0] / SCALE
        return (
            value.detach().mean(),
            (broadcast(draw.slope, x) * along * draw.x0_hat).flatten(1).sum(1).mean(),
        )
