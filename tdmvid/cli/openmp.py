"""Configure how the OpenMP threads of PyTorch's CPU kernels wait."""

from __future__ import annotations

import os


def sleep_between_kernels() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has chosen a policy.

    Spinning threads starve each other as soon as another process needs a core. Call this before
    torch is imported, because OpenMP reads OMP_WAIT_POLICY only once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
