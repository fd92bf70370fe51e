"""What a planned run costs, as rows: hours, GPU-hours, data, download and disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import global_batch
from ..data.repetition import trajectories
from .devices import DEFAULT, DEVICES, Device
from .duration import (
    GPUS_PER_NODE,
    MATRIX_SHARE,
    MEMORY_SHARE,
    Duration,
    matrix_rate,
    memory_rate,
    predict_iteration,
    predict_samples,
)
from .plan import Plan
from .storage import count_storage
from .units import GIB, flops, gib, hours, number

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what a run is priced."""

    device: Device = DEVICES[DEFAULT]
    gpus: int = GPUS_PER_NODE
    """Devices of a node."""
    seconds: float = 0.0
    """Of one iteration, as it was measured; 0 predicts it."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a run costs."""

    iteration: float
    """Seconds."""
    hours: float
    gpu_hours: float
    flops: float
    """Of the run, on all ranks."""
    predicted: Duration


def price_run(plan: Plan, terms: Terms) -> Price:
    """Return what a run costs: its iterations, and the network calls for its samples."""
    predicted = predict_iteration(plan, terms.device, gpus=terms.gpus)
    iteration = terms.seconds or predicted.total
    samples = predict_samples(plan, terms.device) * iteration / predicted.total
    hours = (plan.config.steps * iteration + samples) / 3600
    return Price(
        iteration=iteration,
        hours=hours,
        gpu_hours=hours * plan.ranks,
        flops=plan.flops() * plan.config.steps * plan.ranks,
        predicted=predicted,
    )


def price_rows(plan: Plan, terms: Terms) -> Iterator[Row]:
    """Return the last rows of a plan."""
    config, price, device = plan.config, price_run(plan, terms), terms.device
    ranks = plan.ranks // config.parallel.sequence
    batch, prompts = global_batch(config.batch, ranks), trajectories(config, ranks=ranks)
    kind = "image" if config.video.frames == 1 else "video"
    yield (
        "global batch",
        f"{batch:,} {kind}{'' if batch == 1 else 's'}; {prompts:,} prompts seen in"
        f" {config.steps:,} iterations",
    )
    yield from _storage(plan)
    if not terms.seconds:
        yield from _assumptions(plan, price, device)
    known = (
        f"measured, {terms.seconds:g} s"
        if terms.seconds
        else f"estimated, {number(price.iteration)} s"
    )
    yield (
        "cost",
        f"{hours(price.hours)}, {number(price.gpu_hours)} GPU-hours on {plan.ranks:,} x"
        f" {device.name}"
        f" ({known} an iteration); {flops(price.flops)}",
    )
    if plan.total() > device.memory * GIB:
        yield (
            "",
            f"warning: needs {plan.total() / GIB:,.1f} GiB of the {device.memory:g} that it has",
        )


def _storage(plan: Plan) -> Iterator[Row]:
    """The download, and what is on disk in the end."""
    storage = count_storage(plan)
    if storage.download:
        source = (
            "as its repository lists"
            if storage.listed
            else f"if stored in {plan.config.model.dtype}"
        )
        yield "download", f"{storage.download / GIB:,.1f} GiB of weights, {source}"
    else:
        yield "download", "nothing, model.path is a folder here"
    yield (
        "disk",
        f"{storage.total / GIB:,.1f} GiB: the download, {gib(storage.embeddings)} of embeddings,"
        f" {gib(storage.checkpoints)} of checkpoints, {gib(storage.export)} to export; samples"
        " come on top",
    )


def _assumptions(plan: Plan, price: Price, device: Device) -> Iterator[Row]:
    """What the estimate of an iteration consists of."""
    spent = price.predicted
    half = plan.config.model.dtype != "float32"
    peak = device.tflops if half else device.tflops_float32
    parts = [
        f"{flops(plan.flops())} of matrix products at"
        f" {number(matrix_rate(plan, device) / 1e12)} TFLOP/s, {MATRIX_SHARE:.0%} of the peak of"
        f" {peak:g}, take {number(spent.matrix)} s",
        f"{number(plan.moved() / 1e9)} GB of other kernels at {memory_rate(device) / 1e12:.3g}"
        f" TB/s,"
        f" {MEMORY_SHARE:.0%} of {device.bandwidth:g}, {number(spent.memory)} s",
    ]
    if spent.sending:
        parts.append(f"sending, where nothing hides it, {number(spent.sending)} s")
    if spent.offloaded:
        parts.append(f"moves to host memory and there {number(spent.offloaded)} s")
    if spent.starting > spent.matrix + spent.memory:
        parts.append(
            f"but the host takes {number(spent.starting)} s to start {plan.kernels():,.0f} kernels"
        )
    yield "estimated from", f"{device.sheet}; shares of its peaks are assumed (docs/scaling.md)"
    for part in parts:
        yield "", part
