"""Starting and ending the processes of one run, and the few things they tell each other.

Without a launcher a run is one process, and neither DeepSpeed nor torch.distributed is
touched: every function here then answers for itself.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from .environment import environment_number, launched, waiting
from .sequence import SequenceGroup

Backend = Literal["auto", "none", "deepspeed"]
Result = TypeVar("Result")

LAUNCHERS = ("TORCHELASTIC_RUN_ID", "CROSS_SIZE")
"""What torchrun and deepspeed set: launchers that outlive the ranks that they start."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""
SETTLE = 0.5
"""Seconds a rank waits as it ends, for gloo's threads to let go of their last tensors."""


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, its number on its machine, and its device.

    Neighbouring ranks share one sequence (they talk in every layer, so they should be near);
    each such group is one data-parallel rank: same prompts, same noise.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device
    sequence: SequenceGroup | None = None
    """The ranks that share this rank's sequence; None if it has its sequence for itself."""

    @property
    def data_rank(self) -> int:
        """Which share of the global batch this rank works on."""
        return self.rank // self._together

    @property
    def data_size(self) -> int:
        """How many shares the global batch has."""
        return self.size // self._together

    @property
    def _together(self) -> int:
        return self.sequence.size if self.sequence else 1

    @property
    def primary(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        """Whether a launcher started this run, so that DeepSpeed runs it."""
        return dist.is_initialized()


def start(backend: Backend = "auto", timeout_minutes: float = 30.0, *, sequence: int = 1) -> World:
    """Join the other ranks of the run; "auto" is deepspeed if a launcher (deepspeed, torchrun) set
    RANK and WORLD_SIZE.

    sequence: ranks that share one sequence; the number of ranks must be a multiple of it.
    A rank that waits longer than `timeout_minutes` for another one fails instead of hanging.
    Raises ValueError when the backend and the launcher do not fit together.
    """
    if backend not in ("auto", "none", "deepspeed"):
        raise ValueError(f"parallel.backend={backend!r}: choose auto, none or deepspeed")
    found = launched()
    if backend == "deepspeed" and not found:
        raise ValueError(
            "parallel.backend='deepspeed' but no launcher set RANK and WORLD_SIZE: start with"
            " `deepspeed` or `torchrun --nproc_per_node N`, or choose parallel.backend='none'"
        )
    size = environment_number("WORLD_SIZE") or 1
    if backend == "none" and size > 1:
        raise ValueError(
            f"parallel.backend='none' in WORLD_SIZE={size} processes, each of"
            " which would train alone: choose 'auto' or 'deepspeed', or start one process without"
            " a launcher"
        )
    _choose_convolutions()
    if backend == "none" or not found:
        check_sequence(sequence, 1)
        return World(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # DeepSpeed calls collectives by their old names, several times an iteration.
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
    """Let cuDNN time its kernels for each shape of a convolution, unless the program asked for
    deterministic ones.
    """
    cudnn = torch.backends.cudnn
    if not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled()):
        cudnn.benchmark = True


def end_with_parent() -> None:
    """Have this process asked to stop (SIGTERM) when its parent has died.

    A launcher that is killed with SIGKILL tells its ranks nothing: they would train on, hold their
    devices and the lock of the run's folder.
    """
    with suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def check_sequence(sequence: int, size: int) -> None:
    """ValueError unless groups of `sequence` ranks make up `size` ranks."""
    if size % sequence:
        fitting = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise ValueError(
            f"parallel.sequence={sequence} does not divide {size} ranks: use {fitting}, or start"
            f" another number of ranks (--plan: --ranks {sequence})"
        )


def _sequence_group(sequence: int, timeout: timedelta) -> SequenceGroup | None:
    """This rank's group; every rank makes every group, as torch.distributed wants it, and a group
    takes no timeout over from the run.
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
            f"LOCAL_RANK={local_rank} but this machine shows {torch.cuda.device_count()} GPUs:"
            " start one process per GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join(device: torch.device, timeout: timedelta) -> None:
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read once, when deepspeed is first imported
    import deepspeed
    import deepspeed.ops

    if on_cpu:  # or joining compiles it, which takes a minute and a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # A thread of gloo needs the interpreter to let a tensor go, some time after the collective
        # is done, and finds it gone in a process that has ended meanwhile: SIGABRT
        # (pytorch/pytorch#179291). DeepSpeed keeps the group, so leaving it ends no thread.
        atexit.register(time.sleep, SETTLE)
    deepspeed.init_distributed(
        "gloo" if on_cpu else "nccl", auto_mpi_discovery=False, verbose=False, timeout=timeout
    )


def on_one_machine(world: World) -> bool:
    """Return whether all ranks run on this machine, as far as the launcher says."""
    local = environment_number("LOCAL_WORLD_SIZE") or environment_number("LOCAL_SIZE")
    return local is None or local >= world.size


def distributed() -> bool:
    """Return whether this process has joined others, so that DeepSpeed runs it."""
    return dist.is_initialized()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


def finish() -> None:
    """Leave the run; harmless in a single process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def first_alone(*, every: float = 5.0) -> Iterator[None]:
    """Rank 0 works inside for as long as it takes; the others, with nothing to do there, wait
    behind it.

    They hear of it `every` so many seconds: one wait for all of it would outlast the timeout.
    """
    if not dist.is_initialized():
        yield
        return
    done, device = (
        threading.Event(),
        (torch.cuda.current_device() if torch.cuda.is_available() else None),
    )

    def answer() -> None:
        if device is not None:
            torch.cuda.set_device(device)  # a thread begins on the first one
        while not all_agree(dist.get_rank() > 0 or done.wait(every)):
            pass

    if dist.get_rank() > 0:
        yield
        answer()
        return
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def on_rank0(work: Callable[[], Result]) -> Result:
    """Return what a call returns on rank 0 on every rank, however long it takes there.

    Raises:
        ValueError: On every rank, if the call raises that or an OSError.
    """
    if not dist.is_initialized():
        return work()
    answer: Any = None
    with first_alone():
        if dist.get_rank() == 0:
            try:
                answer = work(), ""
            except (ValueError, OSError) as error:
                answer = None, str(error)
    result, refusal = broadcast_from_rank0(answer)
    if refusal:
        raise ValueError(refusal)
    return result


def all_agree(flag: bool) -> bool:
    """Whether `flag` holds on every rank."""
    if not dist.is_initialized():
        return flag
    lowest = _tensor([float(flag)])
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return bool(lowest.item())


def broadcast_from_rank0(value):
    """Return rank 0's value, anything that pickles, on every rank."""
    if not dist.is_initialized():
        return value
    one = [value]
    dist.broadcast_object_list(one, 0)
    return one[0]


def check_same(what: str, settings: dict[str, object]) -> None:
    """ValueError on every rank, naming rank, key and values, if some rank was given other settings
    than rank 0.
    """
    if not dist.is_initialized():
        return
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, settings)
    first = everyone[0]
    for rank, other in enumerate(everyone):
        for key in sorted(first.keys() | other.keys()):
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"rank {rank} was given another {what} than rank 0: {key}={other.get(key)!r},"
                    f" not {first.get(key)!r}: start all ranks with the same command and the same"
                    " files"
                )


def first_of_sequence(world: World, values: torch.Tensor) -> torch.Tensor:
    """Return the values of the first of the ranks that share this rank's sequence.

    Args:
        values: On the host, of the same shape on all of them.
    """
    if world.sequence is None:
        return values
    group = world.sequence.group
    shared = _tensor(values.flatten().tolist())
    dist.broadcast(shared, dist.get_global_rank(group, 0), group=group)
    return shared.cpu().to(values.dtype).view(values.shape)


def mean(scalars: dict[str, float]) -> dict[str, float]:
    """Each scalar averaged over the ranks, which all pass the same names; a NaN on one is a NaN for
    all.
    """
    if not dist.is_initialized():
        return dict(scalars)
    names = sorted(scalars)
    total = _tensor([scalars[name] for name in names])
    dist.all_reduce(total)
    averages = dict(zip(names, (total / dist.get_world_size()).tolist()))
    return {name: averages[name] for name in scalars}


def _tensor(values: list[float]) -> torch.Tensor:
    """Where the backend can reduce it: [len(values)], float64."""
    return torch.tensor(
        values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu"
    )
