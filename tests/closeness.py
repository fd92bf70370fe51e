"""Compare values relative to the size of what they are errors of."""

import torch


def assert_near(found: torch.Tensor, expected: torch.Tensor, *, rel: float) -> None:
    """Check that no element is off by more than ``rel`` times the largest expected one.

    Machines round differently, by about 1e-6 of the largest term of a sum. An absolute tolerance
    would only hold on machines where the numbers happen to be small.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=rel * expected.abs().max().item())
