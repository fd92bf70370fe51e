"""Start and end the processes of a run.

Without a launcher a run is one process. Then neither DeepSpeed nor torch.distributed is used.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from .environment import environment_number, launched, waiting
from .sequence import SequenceGroup

Backend = Literal["auto", "none", "deepspeed"]

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""Variables of torchrun and deepspeed, which keep running while their ranks run."""
PR_SET_PDEATHSIG = 1
"""Constant of Linux's prctl."""
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals on which a run saves and stops; SLURM sends SIGUSR1 before a time limit."""
SETTLE = 0.5
"""Seconds that a rank waits before it exits, so that gloo's threads release their last tensors."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back STOPPING_SIGNALS in this thread. Processes started meanwhile do not get them.

    SLURM and launchers send signals to every process of a node, but a run that saves its state
    still needs its child processes.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class World:
    """Position of this process among the ranks of a run.

    With sequence parallelism, neighbouring ranks share one sequence, because they communicate in
    every layer. Each such group is one data-parallel rank, with the same prompts and noise.
    """

    rank: int
    """Index of this process."""
    size: int
    """Number of processes."""
    local_rank: int
    """Index of this process on its machine."""
    device: torch.device
    """Device of this process."""
    sequence: SequenceGroup | None = None
    """Ranks that share the sequence of this rank; None without sequence parallelism."""

    @property
    def data_rank(self) -> int:
        """Index of this rank's share of the global batch."""
        return self.rank // self._together

    @property
    def data_size(self) -> int:
        """Number of shares of the global batch."""
        return self.size // self._together

    @property
    def _together(self) -> int:
        return self.sequence.size if self.sequence else 1

    @property
    def primary(self) -> bool:
        """Whether this rank is rank 0, which writes the files."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether this process has joined other ranks, so training uses DeepSpeed."""
        return dist.is_initialized()


def start_alone() -> World:
    """Start a command that runs in one process.

    Returns:
        The position of this process.

    Raises:
        ValueError: A launcher started several processes.
    """
    size = environment_number("WORLD_SIZE") or 1
    if size > 1:
        raise ValueError(
            f"WORLD_SIZE={size}, but this command runs in one process: start it without a launcher,"
            " or unset RANK and WORLD_SIZE"
        )
    return start("none")


def start(backend: Backend = "auto", timeout_minutes: float = 30.0, *, sequence: int = 1) -> World:
    """Join the other ranks of the run.

    Args:
        backend: `auto` uses DeepSpeed if a launcher (deepspeed, torchrun) set RANK and WORLD_SIZE.
        timeout_minutes: Minutes after which a rank that waits for another one fails instead of
            hanging.
        sequence: Number of ranks that share one sequence. The number of ranks must be a multiple.

    Returns:
        The position of this process.

    Raises:
        ValueError: If the backend does not match the launcher, the ranks do not fit `sequence`, or
            the other ranks cannot be joined.
    """
    if backend not in ("auto", "none", "deepspeed"):
        raise ValueError(f"parallel.backend={backend!r}: choose auto, none or deepspeed")
    found = launched()
    if backend == "deepspeed" and not found:
        raise ValueError(
            "parallel.backend='deepspeed', but no launcher set RANK and WORLD_SIZE: start with"
            " `deepspeed` or `torchrun --nproc_per_node N`, or choose parallel.backend='none'"
        )
    size = environment_number("WORLD_SIZE") or 1
    if backend == "none" and size > 1:
        raise ValueError(
            f"parallel.backend='none', but WORLD_SIZE={size} processes were started, and each would"
            " train separately: choose 'auto' or 'deepspeed', or start one process without a"
            " launcher"
        )
    _choose_convolutions()
    if backend == "none" or not found:
        check_sequence(sequence, 1)
        return World(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # DeepSpeed calls collectives by their deprecated names, several times per iteration.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if any(name in os.environ for name in LAUNCHERS):
        end_with_parent()
    local_rank = environment_number("LOCAL_RANK") or 0
    os.environ["LOCAL_RANK"] = str(local_rank)
    device = _own_device(local_rank)
    timeout = timedelta(minutes=timeout_minutes)
    with waiting(found):
        _join(device, timeout)
    check_sequence(sequence, dist.get_world_size())
    return World(
        dist.get_rank(),
        dist.get_world_size(),
        local_rank,
        device,
        _sequence_group(sequence, timeout),
    )


def _choose_convolutions() -> None:
    """Let cuDNN benchmark convolution kernels, unless deterministic algorithms are enabled."""
    cudnn = torch.backends.cudnn
    if not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled()):
        cudnn.benchmark = True


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Send a signal to this process when its parent dies (Linux only).

    A launcher that is killed with SIGKILL cannot stop its ranks. They would continue to train, and
    keep their devices and the lock of the run folder.

    Args:
        number: The signal.
    """
    with suppress(OSError, AttributeError):  # not available outside Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def check_sequence(sequence: int, size: int) -> None:
    """Check that the number of ranks is a multiple of the ranks that share a sequence.

    Args:
        sequence: Number of ranks that share a sequence.
        size: Number of ranks.

    Raises:
        ValueError: If `sequence` does not divide `size`.
    """
    if size % sequence:
        fitting = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise ValueError(
            f"parallel.sequence={sequence} does not divide {size} ranks: use {fitting}, or start"
            f" another number of ranks (with --plan: --ranks {sequence})"
        )


def _sequence_group(sequence: int, timeout: timedelta) -> SequenceGroup | None:
    """Create the sequence group of this rank.

    torch.distributed requires that every rank creates every group. A group does not inherit the
    timeout of the run.
    """
    if sequence == 1:
        return None
    size, rank = dist.get_world_size(), dist.get_rank()
    groups = [
        dist.new_group(list(range(first, first + sequence)), timeout=timeout)
        for first in range(0, size, sequence)
    ]
    return SequenceGroup(groups[rank // sequence])


def _own_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK={local_rank}, but this machine has {torch.cuda.device_count()} visible"
            " GPUs: start one process per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(device: torch.device, timeout: timedelta) -> None:
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # deepspeed reads it only at its first import
    import deepspeed
    import deepspeed.ops

    if on_cpu:  # otherwise it is compiled, which takes a minute and needs a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # A gloo thread needs the interpreter to release a tensor some time after the collective. If
        # the process has exited by then, it aborts with SIGABRT (pytorch/pytorch#179291). DeepSpeed
        # keeps the group, so destroying it does not end the thread.
        atexit.register(time.sleep, SETTLE)
    deepspeed.init_distributed(
        "gloo" if on_cpu else "nccl", auto_mpi_discovery=False, verbose=False, timeout=timeout
    )


def on_one_machine(world: World) -> bool:
    """Check whether all ranks run on this machine.

    Args:
        world: Position of this process.

    Returns:
        False if the launcher reports fewer local ranks than ranks; otherwise True.
    """
    local = environment_number("LOCAL_WORLD_SIZE") or environment_number("LOCAL_SIZE")
    return local is None or local >= world.size


def distributed() -> bool:
    """Return whether this process has joined other ranks, so training uses DeepSpeed."""
    return dist.is_initialized()


def free_port() -> int:
    """Return an unused port of this machine."""
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


def finish() -> None:
    """Leave the process group. Does nothing in a single process."""
    if dist.is_initialized():
        dist.destroy_process_group()
