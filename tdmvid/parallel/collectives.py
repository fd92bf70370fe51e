"""Communicate between the processes of a run.

Without a launcher a run is one process. Then torch.distributed is not used, and every function
returns the result of a single rank.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .launch import World

Result = TypeVar("Result")


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def first_alone(*, every: float = 5.0) -> Iterator[None]:
    """Let rank 0 run the block for as long as it takes, while the other ranks wait after it.

    The ranks exchange a message at regular intervals, because a single long wait would exceed the
    timeout of collectives.

    Args:
        every: Seconds between messages.
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
            torch.cuda.set_device(device)  # a new thread starts on device 0
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
    """Call a function on rank 0, and return its result on every rank. Collective.

    The call may take longer than the timeout of collectives.

    Args:
        work: The function. Its result must be picklable.

    Returns:
        The result of the function on rank 0.

    Raises:
        ValueError: On every rank, if the function raises a ValueError or an OSError.
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
    """Check whether a flag is true on every rank. Collective.

    Args:
        flag: The flag of this rank.

    Returns:
        True if all ranks passed True.
    """
    if not dist.is_initialized():
        return flag
    lowest = _tensor([float(flag)])
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return bool(lowest.item())


def broadcast_from_rank0(value):
    """Return the value of rank 0 on every rank. Collective.

    Args:
        value: A picklable value; only that of rank 0 is used.

    Returns:
        The value of rank 0.
    """
    if not dist.is_initialized():
        return value
    one = [value]
    dist.broadcast_object_list(one, 0)
    return one[0]


def check_same(what: str, settings: dict[str, object]) -> None:
    """Check that all ranks have the same settings. Collective.

    Args:
        what: Kind of the settings, for the message, e.g. "config".
        settings: Settings of this rank.

    Raises:
        ValueError: On every rank, if the settings of a rank differ from those of rank 0. The
            message gives rank, key and both values.
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
    """Return the values of the first rank that shares this rank's sequence.

    Args:
        world: Position of this process.
        values: Tensor [...] on the host, of the same shape on all these ranks.

    Returns:
        The values of the first rank, in the same shape and dtype.
    """
    if world.sequence is None:
        return values
    group = world.sequence.group
    shared = _tensor(values.flatten().tolist())
    dist.broadcast(shared, dist.get_global_rank(group, 0), group=group)
    return shared.cpu().to(values.dtype).view(values.shape)


def mean(scalars: dict[str, float]) -> dict[str, float]:
    """Average scalars over the ranks. Collective.

    Args:
        scalars: Name -> value, with the same names on all ranks.

    Returns:
        Name -> mean. A NaN on one rank gives a NaN on all ranks.
    """
    if not dist.is_initialized():
        return dict(scalars)
    names = sorted(scalars)
    total = _tensor([scalars[name] for name in names])
    dist.all_reduce(total)
    averages = dict(zip(names, (total / dist.get_world_size()).tolist()))
    return {name: averages[name] for name in scalars}


def _tensor(values: list[float]) -> torch.Tensor:
    """Make a tensor on a device that the backend can reduce: [len(values)], float64."""
    return torch.tensor(
        values, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu"
    )
