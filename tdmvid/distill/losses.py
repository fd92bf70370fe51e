"""Distances and weights. Samples are [B, ...]; every result is float32.

Source: arXiv 2503.06674 and its authors' released code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_mean(x: Tensor) -> Tensor:
    """The mean over all but the batch dimension: [B, ...] -> [B]."""
    return x.flatten(1).mean(1)


def snr_weight(alpha: Tensor, sigma: Tensor, ceiling: float) -> Tensor:
    """min(alpha^2 / sigma^2, ceiling), "Min-SNR" (arXiv 2303.09556): [B] -> [B]."""
    return (alpha / sigma).square().clamp(max=ceiling)


def velocity_weight(sigma: Tensor, ceiling: float) -> Tensor:
    """min(1 / sigma^2, ceiling): an error of x0 counts as that of the velocity which the network
    predicts: [B] -> [B].
    """
    return sigma.square().reciprocal().clamp(max=ceiling)


def importance_weight(eps_mix: Tensor, eps: Tensor, kind: str) -> Tensor:
    """q(x_tau | x0_hat) / q(x_tau | x_s) per sample: [B].

    `sum` is the exact ratio, exp(-|eps_mix|^2 / 2 + |eps|^2 / 2), clamped at 20 because it
    degenerates in many dimensions; `mean` replaces the sum over dimensions by the mean
    (the released code); `none` is 1.
    """
    if kind == "none":
        return torch.ones(len(eps), device=eps.device)
    exponent = (eps.square() - eps_mix.square()).flatten(1) / 2
    return exponent.mean(1).exp() if kind == "mean" else exponent.sum(1).exp().clamp(max=20.0)


def effective_sample_share(weight: Tensor) -> Tensor:
    """Return (sum w)^2 / (B sum w^2): 1 when all weights are equal, 0 when all have vanished."""
    share = weight / weight.max().clamp(min=1e-30)
    return share.sum().square() / (len(share) * share.square().sum()).clamp(min=1e-30)


def distance(
    x: Tensor, target: Tensor, norm: Tensor, *, kind: str, huber_c: float | None
) -> Tensor:
    """The generator's distance to its detached target, one scalar.

    norm: [B], DMD's normaliser (arXiv 2311.18828, Eq. 8).
    huber         mean (sqrt(d^2 + c^2) - c) / norm, c = 1e-3
    huber_vector  mean over samples of sqrt(|d|^2 + c^2) - c, c = 0.00054 sqrt(dimensions), no norm
    l2            mean d^2 / norm
    """
    difference = x - target
    if kind == "huber_vector":
        flat = difference.flatten(1)
        c = 0.00054 * flat.shape[1] ** 0.5 if huber_c is None else huber_c
        return ((flat.square().sum(1) + c * c).sqrt() - c).mean()
    if kind == "l2":
        return (per_sample_mean(difference.square()) / norm).mean()
    c = 1e-3 if huber_c is None else huber_c
    return (per_sample_mean((difference.square() + c * c).sqrt() - c) / norm).mean()
