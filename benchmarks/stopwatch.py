"""Timing of several things against each other in one process, and the memory that a call takes.

Runs alternate, so that a neighbour on the machine slows all of them alike; ratios of medians are
what is compared. On a CPU, time is this process's processor time, which a neighbour hardly changes;
on a GPU it is the wall clock around a synchronised call.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tdmvid.backbones.quantize import parts
from tdmvid.data.files import write_json

MIB = 2**20


@dataclass(frozen=True)
class Clock:
    """Medians over repetitions, in seconds; `seconds` is what to compare."""

    seconds: float
    wall: float
    spread: float
    """Largest over smallest of the compared times."""


def alternate(
    calls: dict[str, Callable[[int], object]], *, repeats: int, device: torch.device
) -> dict[str, Clock]:
    """Each call in turn, `repeats` times round, after one round that is not timed; a call is given
    its round.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least 1")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            wall, processor = seconds(partial(call, turn), device)
            if turn:
                taken[name].append((wall if device.type == "cuda" else processor, wall))
    return {
        name: Clock(
            *(statistics.median(column) for column in zip(*times)), max(times)[0] / min(times)[0]
        )
        for name, times in taken.items()
    }


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    _wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    call()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - processor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors alive at once that `call` made, over what was there before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    alive = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


class Kept:
    """Bytes that autograd keeps at once while it is entered: the measure of activations where no
    allocator counts.
    """

    def __init__(self, networks: list[nn.Module]):
        tensors = [
            part
            for network in networks
            for p in (*network.parameters(), *network.buffers())
            for part in parts(p)
        ]
        self.known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.alive, self.now, self.peak = {}, 0, 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            self.pack, lambda held: held.tensor if isinstance(held, _Held) else held
        )

    def __enter__(self) -> Kept:
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self.hooks.__exit__(*exception)

    def pack(self, tensor: torch.Tensor):
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.known:
            return tensor
        count, size = self.alive.get(key, (0, storage.nbytes()))
        self.now += 0 if count else size
        self.peak = max(self.peak, self.now)
        self.alive[key] = count + 1, size
        return _Held(self, key, tensor)

    def drop(self, key: int) -> None:
        count, size = self.alive[key]
        self.alive[key] = count - 1, size
        if count == 1:
            self.now -= size
            del self.alive[key]


class _Held:
    """A tensor that autograd holds; says when it no longer does."""

    def __init__(self, kept: Kept, key: int, tensor: torch.Tensor):
        self.kept, self.key, self.tensor = kept, key, tensor

    def __del__(self):
        self.kept.drop(self.key)


def machine(device: torch.device) -> str:
    """What was measured on, in one line."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{name}; torch {torch.__version__}, {platform.platform()}"


def table(head: list[str], rows: list[list[object]]) -> str:
    """Markdown; numbers with three figures."""

    def cell(value):
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(
    title: str,
    head: list[str],
    rows: list[list[object]],
    *,
    device: torch.device,
    path: Path | None,
) -> None:
    """Print the table, and add it to the JSON file `path`, if one is wanted."""
    assert len({*head}) == len(head), head
    print(f"\n{title}\n{machine(device)}\n\n{table(head, rows)}", flush=True)
    if path:
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(
            path,
            known
            | {title: {"machine": machine(device), "rows": [dict(zip(head, row)) for row in rows]}},
        )
