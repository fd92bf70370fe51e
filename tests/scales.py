"""Compare tensors relative to their scale, because rounding differs between machines."""

import torch


def assert_close(found, expected, tolerance):
    """Allow an error of `tolerance` times the largest absolute value of `expected`."""
    scale = expected.float().abs().max().item()
    torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)
