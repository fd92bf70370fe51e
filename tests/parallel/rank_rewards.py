"""Reward functions that ranks import."""

import math

import torch


def sometimes(samples: torch.Tensor, prompts: list[str]) -> list[float]:
    """Score the left half against the right; fail where the upper half is lighter than the lower,
    which no sample is bound to.
    """
    upper, lower = (half.mean((1, 2, 3, 4)) for half in samples.float().chunk(2, 3))
    left, right = (half.mean((1, 2, 3, 4)) for half in samples.float().chunk(2, 4))
    return torch.where(upper > lower, math.nan, left - right).tolist()
