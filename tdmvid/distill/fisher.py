"""Fisher divergence instead of the reverse KL for the student (arXiv 2503.06674, its Fisher
variant).

At a time tau let q be the law of x_tau on the student's trajectory, p the teacher's, psi the
fake's score, and c = grad log q(x_tau | x_s) = -eps / beta the conditional score. Minimised is

    F(theta) = E_q |psi - s_p|^2,    psi = grad log q at the optimum of the fake.

psi depends on theta too, but needs no derivative: for every fixed u, E_q[u . (psi - c)] = 0 for
all theta (Tweedie), and its derivative in theta gives E_q[u . d psi] = -d E[u . (psi - c)], where
on the right only x_tau moves. With u = 2 (psi - s_p),

    dF = d E[ |psi - s_p|^2 - 2 (psi - s_p) . (psi - c) ],   both networks' weights held still,

the loss of SiD (arXiv 2404.04057) at its alpha = 1/2. In clean predictions, by
s = (alpha D - x) / sigma^2, with gap = D_fake - D_teacher and r = alpha D_fake - x + sigma^2 eps /
beta:

    dF = alpha / sigma^4 d E[ alpha |gap|^2 - 2 gap . r ].

It is dearer than TDM's gradient: backward passes through fake and teacher, to their input alone.
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
    """TDM's draw and fake, the student along the gradient of the Fisher divergence."""

    def _student(self, roles: Roles, draw: Draw, cond: Cond) -> dict[str, Tensor]:
        """A surrogate loss with the gradient sigma^4 / (alpha norm^2) dF in x0_hat, norm DMD's of
        the kind `tdm`.

        `draw.slope` is the derivative of x_tau in x0_hat.
        """
        assert draw.slope is not None
        along, clean = direction(roles, draw, cond)
        norm = per_sample_mean((draw.x0_hat.detach() - clean).abs()).clamp(min=1e-8)
        loss = per_sample_mean(
            broadcast(draw.slope / norm.square(), along) * along * draw.x0_hat
        ).mean()
        return {"loss": loss, "pull": along.abs().mean() / norm.mean()}


def direction(roles: Roles, draw: Draw, cond: Cond) -> tuple[Tensor, Tensor]:
    """d (alpha |gap|^2 - 2 gap . r) / d x_tau per sample, and the teacher's clean prediction: two
    [B, ...].

    The gradient is taken at x_tau alone: no parameter of fake or teacher sees any of it.
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
