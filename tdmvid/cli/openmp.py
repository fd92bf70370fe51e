"""How the threads of PyTorch's CPU kernels wait for each other."""

from __future__ import annotations

import os


def sleep_between_kernels() -> None:
    """Let idle OpenMP threads sleep instead of spinning, unless the user chose a policy.

    Spinning threads starve each other as soon as another process needs a core. It must be called
    before torch is imported: OpenMP reads OMP_WAIT_POLICY once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
