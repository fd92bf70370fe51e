"""Estimate what a planned run costs: hours, GPU-hours, prompts, download and disk."""

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
"""Label and text of a line of a plan."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Device, node size and speed that a run is priced with."""

    device: Device = DEVICES[DEFAULT]
    gpus: int = GPUS_PER_NODE
    """Devices per node."""
    seconds: float = 0.0
    """Measured seconds per iteration; 0 predicts them."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Cost of a run."""

    iteration: float
    """Seconds per iteration."""
    hours: float
    gpu_hours: float
    flops: float
    """FLOPs of the whole run on all ranks."""
    predicted: Duration
    """Predicted duration of an iteration, also if a measured one is used."""


def price_run(plan: Plan, terms: Terms) -> Price:
    """Price the iterations of a run and the network calls for its samples.

    Args:
        plan: Plan of the run.
        terms: Device, node size and, if known, the measured speed.

    Returns:
        Time and FLOPs of the run.
    """
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
    """Yield the last rows of a plan: prompts, download, disk and cost.

    Args:
        plan: Plan of the run.
        terms: Device, node size and, if known, the measured speed.

    Yields:
        Pairs of label and text.
    """
    config, price, device = plan.config, price_run(plan, terms), terms.device
    ranks = plan.ranks // config.parallel.sequence
    batch, prompts = global_batch(config.batch, ranks), trajectories(config, ranks=ranks)
    kind = "image" if config.video.frames == 1 else "video"
    yield (
        "global batch",
        f"{batch:,} {kind}{'' if batch == 1 else 's'}; {prompts:,} prompts used in"
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
        f" ({known} per iteration); {flops(price.flops)}",
    )
    if plan.total() > device.memory * GIB:
        yield (
            "",
            f"warning: needs {plan.total() / GIB:,.1f} GiB, but this device has {device.memory:g}"
            " GiB; add --device-memory to see which settings to change",
        )


def _storage(plan: Plan) -> Iterator[Row]:
    """Yield the size of the download and the disk space that the run needs."""
    storage = count_storage(plan)
    if storage.download:
        source = (
            "sizes as listed in its repository"
            if storage.listed
            else f"estimated for storage in {plan.config.model.dtype}"
        )
        yield "download", f"{storage.download / GIB:,.1f} GiB of weights ({source})"
    else:
        yield "download", "none, model.path is a local folder"
    images = f" {gib(storage.images)} of given images," if storage.images else ""
    real = f" {gib(storage.real)} of real latents," if storage.real else ""
    yield (
        "disk",
        f"{storage.total / GIB:,.1f} GiB: {'the download, ' * bool(storage.download)}"
        f"{gib(storage.embeddings)} of embeddings,"
        f"{images}{real} {gib(storage.checkpoints)} of checkpoints,"
        f" {gib(storage.export)} of exported weights;"
        " samples not included",
    )


def _assumptions(plan: Plan, price: Price, device: Device) -> Iterator[Row]:
    """Yield the device's source and the parts of the estimated iteration time."""
    spent = price.predicted
    half = plan.config.model.dtype != "float32"
    peak = device.tflops if half else device.tflops_float32
    parts = [
        f"matrix products: {flops(plan.flops())} at"
        f" {number(matrix_rate(plan, device) / 1e12)} TFLOP/s ({MATRIX_SHARE:.0%} of the peak of"
        f" {peak:g}) = {number(spent.matrix)} s",
        f"other kernels: {number(plan.moved() / 1e9)} GB at {memory_rate(device) / 1e12:.3g}"
        f" TB/s"
        f" ({MEMORY_SHARE:.0%} of {device.bandwidth:g}) = {number(spent.memory)} s",
    ]
    if spent.sending:
        parts.append(f"communication not hidden behind compute: {number(spent.sending)} s")
    if spent.offloaded:
        parts.append(f"offloading to CPU memory: {number(spent.offloaded)} s")
    if spent.starting > spent.matrix + spent.memory:
        parts.append(
            f"but launching {plan.kernels():,.0f} kernels takes the CPU {number(spent.starting)} s"
        )
    yield (
        "time estimate",
        f"per iteration, from the {device.sheet}; the shares of the peaks are assumed"
        " (docs/scaling.md)",
    )
    for part in parts:
        yield "", part
