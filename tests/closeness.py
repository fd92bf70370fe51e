"""Closeness: errors are measured by the size of what they are errors of."""

import torch


def assert_near(found: torch.Tensor, expected: torch.Tensor, *, rel: float) -> None:
    """Check that no element is off by more than ``rel`` times the largest expected one.

    Machines round differently, by about 1e-6 of a sum's largest term: an absolute tolerance
    would hold on those whose numbers happen to be small.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=rel * expected.abs().max().item())
