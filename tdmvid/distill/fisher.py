"""TDM with the Fisher divergence instead of the reverse KL (arXiv 2503.06674, Fisher variant).

At a time tau, let q be the distribution of x_tau on the student's trajectory, p the teacher's
distribution with score s_p, psi the score of the fake, and
c = grad log q(x_tau | x_s) = -eps / beta the conditional score. The student minimises

    F(theta) = E_q |psi - s_p|^2,    psi = grad log q at the optimum of the fake.

psi also depends on theta, but its derivative is not needed: for every fixed u,
E_q[u . (psi - c)] = 0 for all theta (Tweedie). The derivative of this identity in theta gives
E_q[u . d psi] = -d E[u . (psi - c)], where only x_tau varies on the right. With u = 2 (psi - s_p),

    dF = d E[ |psi - s_p|^2 - 2 (psi - s_p) . (psi - c) ],   weights of both networks fixed.

This is the loss of SiD (arXiv 2404.04057) with alpha = 1/2. In clean predictions, with
s = (alpha D - x) / sigma^2, gap = D_fake - D_teacher and
r = alpha D_fake - x + sigma^2 eps / beta:

    dF = alpha / sigma^4 d E[ alpha |gap|^2 - 2 gap . r ].

It costs more than the gradient of TDM: it needs backward passes through fake and teacher, but only
to their input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import FisherSettings
from ..diffusion.denoiser import Cond
from ..diffusion.process import broadcast
from .losses import per_sample_mean
from .objective import Draw, Roles, register
from .tdm import TDM


@register
class Fisher(FisherSettings, TDM):
    """Draw and fake of TDM, with a student that follows the gradient of the Fisher divergence."""

    def _student(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """Compute a surrogate loss with the gradient sigma^4 / (alpha norm^2) dF in x0_hat.

        `norm` is the normaliser of DMD, as in `tdm`. `draw.slope` is the derivative of x_tau in
        x0_hat.
        """
        assert draw.slope is not None
        along, clean = direction(roles, draw, cond)
        norm = per_sample_mean((draw.x0_hat.detach() - clean).abs()).clamp(min=1e-8)
        loss = per_sample_mean(
            broadcast(draw.slope / norm.square(), along) * along * draw.x0_hat
        ).mean()
        return {"loss": loss, "pull": along.abs().mean() / norm.mean()}


def direction(roles: Roles, draw: Draw, cond: Cond) -> tuple[Tensor, Tensor]:
    """Compute the gradient of alpha |gap|^2 - 2 gap . r at x_tau; see the module docstring.

    The gradient is computed only for x_tau, so parameters of fake and teacher get none.

    Args:
        roles: The denoisers.
        draw: Draw with x_tau [B, ...], tau [B], eps [B, ...] and beta [B].
        cond: Conditioning of the batch.

    Returns:
        The gradient and the teacher's clean prediction, each [B, ...].
    """
    alpha, sigma = roles.fake.process.levels(draw.tau, draw.x_tau)
    with torch.enable_grad():
        x = draw.x_tau.detach().requires_grad_()
        fake, teacher = roles.fake(x, draw.tau, cond), roles.teacher(x, draw.tau, cond)
        gap, r = (
            fake - teacher,
            alpha * fake - x + sigma.square() / broadcast(draw.beta, x) * draw.eps,
        )
        along = torch.autograd.grad((alpha * gap.square() - 2 * gap * r).sum(), x)[0]
    return along, teacher.detach()
