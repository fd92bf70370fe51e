"""TDM with an adversarial term on noised latents (arXiv 2503.06674, TDM-unify-GAN).

In addition to the two scores, a discriminator D distinguishes x_tau of the student's trajectory,
with distribution q, from real latents noised to the same tau, with distribution p. D is conditioned
on tau, and on K if K is drawn from a set.

    logistic   L_D = E_p softplus(-D) + E_q softplus(D),      L_G = E_q softplus(-D)
    hinge      L_D = E_p relu(1 - D) + E_q relu(1 + D),       L_G = -E_q D

The logistic L_D is minimal at D = log p(x_tau) - log q(x_tau). The gradient of this log ratio is
the difference of scores that TDM follows, so the two terms agree; but D sees real data, while the
teacher is only a model of the data. The gradient of L_G passes through x_tau only to x0_hat
(`Draw.slope`); discriminator and features get none of it.
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
"""Scale of the gradient inside the discriminator. Without it, the gradient of a logit by one
element is too small for float16.
"""


@dataclass(frozen=True)
class RealDraw(Draw):
    """Draw with random numbers that select and noise real latents."""

    pick: Tensor = field(kw_only=True)
    """Uniform numbers in [0, 1) that select real latents, [B]; see `Roles.real`."""
    real_eps: Tensor = field(kw_only=True)
    """Noise of the real latents, [B, ...]."""


@register
class GAN(GANSettings, TDM):
    """TDM with an adversarial term."""

    def draw(
        self, path: Trajectory, x0_hat: Tensor, generator: torch.Generator, process: Process
    ) -> RealDraw:
        """Make the draw of TDM, and choose real latents and their noise.

        Args:
            path: The student's trajectory at s_k.
            x0_hat: The student's clean predictions, [B, ...].
            generator: Generator of times, choices and noise.
            process: Process of the teacher.

        Returns:
            The draw.
        """
        draw = super().draw(path, x0_hat, generator, process)
        pick = torch.rand(len(x0_hat), generator=generator, device=x0_hat.device)
        real_eps = torch.randn(x0_hat.shape, generator=generator, device=x0_hat.device)
        return RealDraw(**vars(draw), pick=pick, real_eps=real_eps)

    def loss(self, role: str, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute the loss of a role.

        The discriminator compares x_tau with real latents noised to the same tau. The student's
        loss is that of TDM plus `weight` times L_G.

        Args:
            role: `fake`, `discriminator` or `student`.
            roles: The denoisers, with `discriminator` and `real`.
            draw: A draw of `draw`.
            cond: Conditioning of the batch.

        Returns:
            `loss`, a scalar with a graph, and scalars to log.
        """
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
        )  # one call, because an engine may treat each call as a training step
        if self.adversarial == "hinge":
            loss = relu(1 - of_real).mean() + relu(1 + of_fake).mean()
        else:
            loss = softplus(-of_real).mean() + softplus(of_fake).mean()
        right = ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        return {"loss": loss, "right": right}

    def _generator(self, roles: Roles, draw: Draw, cond: Cond) -> tuple[Tensor, Tensor]:
        """Return L_G without a graph, and a surrogate with the gradient of L_G in x0_hat."""
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
