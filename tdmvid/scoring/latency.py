"""How long a stage of sampling takes, and how much memory it needs at its peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Stage:
    """Median, fastest and slowest of some calls in seconds, and the peak of memory in bytes over
    all of them.

    On a GPU the memory is the device's, on a CPU the process's; None where the system does not
    tell.
    """

    seconds: float
    fastest: float
    slowest: float
    peak: int | None


def measure(call: Callable[[], object], device: torch.device, *, repeats: int) -> Stage:
    """Time `call` that often after one call that is not timed, in which weights are loaded and
    kernels chosen.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1")
    call()
    known, seconds = _reset_peak(device), []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return Stage(
        statistics.median(seconds), min(seconds), max(seconds), _peak(device) if known else None
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> bool:
    """Start the high-water mark over; whether the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # Linux: this process's own
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
