"""Distances and weights of the losses. Samples are [B, ...]; results are float32.

Source: arXiv 2503.06674 and the authors' released code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_sample_mean(x: Tensor) -> Tensor:
    """Compute the mean over all dimensions except the batch.

    Args:
        x: Samples, [B, ...].

    Returns:
        One mean per sample, [B].
    """
    return x.flatten(1).mean(1)


def snr_weight(alpha: Tensor, sigma: Tensor, ceiling: float) -> Tensor:
    """Compute the Min-SNR weight (arXiv 2303.09556): min(alpha^2 / sigma^2, ceiling).

    Args:
        alpha: Signal level, [B].
        sigma: Noise level, [B].
        ceiling: Largest weight.

    Returns:
        Weight of each sample, [B].
    """
    return (alpha / sigma).square().clamp(max=ceiling)


def velocity_weight(sigma: Tensor, ceiling: float) -> Tensor:
    """Compute the weight min(1 / sigma^2, ceiling), which turns x0 errors into velocity errors.

    Args:
        sigma: Noise level, [B].
        ceiling: Largest weight.

    Returns:
        Weight of each sample, [B].
    """
    return sigma.square().reciprocal().clamp(max=ceiling)


def importance_weight(eps_mix: Tensor, eps: Tensor, kind: str) -> Tensor:
    """Compute the importance ratio q(x_tau | x0_hat) / q(x_tau | x_s) (arXiv 2503.06674).

    * `sum`: the exact ratio exp(-|eps_mix|^2 / 2 + |eps|^2 / 2), clamped at 20 because it
      degenerates in many dimensions.
    * `mean`: the mean over dimensions instead of the sum (the released code).
    * `none`: 1.

    Args:
        eps_mix: Noise in x_tau relative to x0_hat, [B, ...].
        eps: Fresh noise in x_tau relative to x_s, [B, ...].
        kind: `sum`, `mean` or `none`.

    Returns:
        Weight of each sample, [B].
    """
    if kind == "none":
        return torch.ones(len(eps), device=eps.device)
    exponent = (eps.square() - eps_mix.square()).flatten(1) / 2
    return exponent.mean(1).exp() if kind == "mean" else exponent.sum(1).exp().clamp(max=20.0)


def effective_sample_share(weight: Tensor) -> Tensor:
    """Compute the effective sample size as a share of the batch: (sum w)^2 / (B sum w^2).

    Args:
        weight: Weight of each sample, [B].

    Returns:
        A scalar: 1 if all weights are equal, 0 if all weights are 0.
    """
    share = weight / weight.max().clamp(min=1e-30)
    return share.sum().square() / (len(share) * share.square().sum()).clamp(min=1e-30)


def distance(
    x: Tensor, target: Tensor, norm: Tensor, *, kind: str, huber_c: float | None
) -> Tensor:
    """Compute the student's loss, the distance d = x - target to a detached target.

    * `huber`: mean of (sqrt(d^2 + c^2) - c) / norm over elements, with c = 1e-3.
    * `huber_vector`: mean of sqrt(|d|^2 + c^2) - c over samples, with c = 0.00054 sqrt(dimensions)
      and without norm (arXiv 2503.06674).
    * `l2`: mean of d^2 / norm over elements.

    Args:
        x: The student's clean predictions, [B, ...].
        target: Targets, [B, ...].
        norm: Normaliser of DMD for each sample, [B] (arXiv 2311.18828, Eq. 8).
        kind: `huber`, `huber_vector` or `l2`.
        huber_c: Constant c of the Huber losses; None uses the default.

    Returns:
        The loss, a scalar.
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
