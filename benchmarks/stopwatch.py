"""Time several functions against each other in one process, and measure the memory of a call.

The functions alternate, so that other load on the machine slows all of them equally; ratios of
medians are compared. On a CPU, time is the processor time of this process, which other load hardly
affects. On a GPU it is the wall-clock time of a synchronized call.
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
from tdmvid.config.json_files import read_object
from tdmvid.data.files import write_json
from tdmvid.data.progress import progress

MIB = 2**20


@dataclass(frozen=True)
class Clock:
    """Medians over repetitions in seconds. Compare `seconds`."""

    seconds: float
    wall: float
    spread: float
    """Ratio of the largest to the smallest of the compared times."""


def alternate(
    calls: dict[str, Callable[[int], object]], *, repeats: int, device: torch.device
) -> dict[str, Clock]:
    """Time functions in turn, after one warm-up round.

    Args:
        calls: Functions by name. Each gets the number of its round.
        repeats: Number of timed rounds.
        device: Device they run on.

    Returns:
        Times by name.

    Raises:
        ValueError: `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    rounds = repeats + 1
    with progress("timing", total=rounds * len(calls), unit="call") as bar:
        for turn in range(rounds):
            for name, call in calls.items():
                wall, processor = seconds(partial(call, turn), device)
                if turn:
                    taken[name].append((wall if device.type == "cuda" else processor, wall))
                bar.update()
    return {
        name: Clock(
            *(statistics.median(column) for column in zip(*times)), max(times)[0] / min(times)[0]
        )
        for name, times in taken.items()
    }


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Time one call.

    Args:
        call: The function.
        device: Device it runs on.

    Returns:
        Wall-clock and processor seconds.
    """
    _wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    call()
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - processor


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory of a call, in addition to the memory in use before it.

    Args:
        call: The function.
        device: Device it runs on.

    Returns:
        Peak bytes of tensors that the call created.
    """
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
    """Count the bytes that autograd keeps within this context. Measures activations where no
    allocator statistics exist.

    Args:
        networks: Networks whose parameters and buffers are not counted.
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
        """Count a tensor that autograd saves.

        Args:
            tensor: The tensor, of any shape.

        Returns:
            The object for autograd to keep.
        """
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
        """Stop counting one use of a storage.

        Args:
            key: Address of the storage.
        """
        count, size = self.alive[key]
        self.alive[key] = count - 1, size
        if count == 1:
            self.now -= size
            del self.alive[key]


class _Held:
    """A tensor that autograd keeps. Reports when it is released."""

    def __init__(self, kept: Kept, key: int, tensor: torch.Tensor):
        self.kept, self.key, self.tensor = kept, key, tensor

    def __del__(self):
        self.kept.drop(self.key)


def machine(device: torch.device) -> str:
    """Describe the device, PyTorch version and platform in one line.

    Args:
        device: Device of the measurement.

    Returns:
        The description.
    """
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return f"{name}; torch {torch.__version__}, {platform.platform()}"


def table(head: list[str], rows: list[list[object]]) -> str:
    """Format a Markdown table. Floats have three significant digits.

    Args:
        head: Columns.
        rows: Values of each row.

    Returns:
        The table.
    """

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
    """Print a table and optionally add it to a JSON file.

    Args:
        title: Title of the table.
        head: Columns.
        rows: Values of each row.
        device: Device of the measurement.
        path: The JSON file; None writes none.
    """
    assert len({*head}) == len(head), head
    print(f"\n{title}\n{machine(device)}\n\n{table(head, rows)}", flush=True)
    if path:
        known = read_object(path) if path.exists() else {}
        write_json(
            path,
            known
            | {title: {"machine": machine(device), "rows": [dict(zip(head, row)) for row in rows]}},
        )
