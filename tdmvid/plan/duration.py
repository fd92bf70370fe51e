"""Predict how long a planned run takes on a device without running it.

The model adds three times: FLOPs at an assumed share of the device's peak, bytes at an assumed
share of its memory bandwidth, and communication over the links between ranks. Every share is a
constant in this file, with its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..backbones.dtype import torch_dtype
from .calls import teacher_calls
from .counts import bytes_per_value
from .devices import Device
from .guard import GuardCalls, count_samples
from .plan import Plan

MATRIX_SHARE = 0.51
"""Share of the data sheet's dense peak that a network's matrix products and attention reach. An
H200 was measured at 788 TFLOP/s for large bfloat16 products, 0.80 of its data sheet. CogVideoX-2B
is estimated to reach 55 to 60 % of that with all its other kernels included, which is 0.51 of the
data sheet for its products alone. No iteration was measured on a GPU.
"""
MEMORY_SHARE = 0.8
"""Share of the data sheet's memory bandwidth that elementwise kernels reach. Assumed."""
LINK_SHARE = 0.8
"""Share of the link and network rates that large collectives reach. Assumed."""
KERNEL_SECONDS = 8e-6
"""CPU time in seconds to launch one kernel from PyTorch. Assumed."""
HIDDEN = 4.8 / 7.6
"""Share of ZeRO-3's gathers that overlap with computation. Counted on a CPU (benchmarks/NOTES.md).
"""
HOP = 1.9e-6
HOP_BETWEEN_NODES = 4.0e-6
START = 10e-6
"""Latencies in seconds: one step of a ring within a node (HOP) and between nodes
(HOP_BETWEEN_NODES), and the start of a collective (START). Source: NCCL's table
(src/graph/tuning.cc, LL128).
"""
FETCHED = 5e7
"""Number of weights that DeepSpeed gathers at a time (stage3_prefetch_bucket_size)."""
HOST_ADAM = 1e9
"""Parameters per second that AdamW updates on the CPU, shared by the ranks of a node. Assumed."""
ALL_TO_ALLS = 4
"""All-to-all collectives per block with sequence parallelism: query, key, value, and output."""
GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Seconds of one iteration on one rank, by cause."""

    matrix: float
    """Matrix products and attention."""
    memory: float
    """All other kernels, which are limited by memory bandwidth."""
    starting: float
    """CPU time to launch all kernels. Launching overlaps with the kernels before."""
    sending: float
    """Communication between ranks that computation does not hide."""
    offloaded: float
    """Transfers to and from CPU memory, and updates on the CPU."""

    @property
    def computing(self) -> float:
        """Seconds of computation: the larger of kernel time and launch time."""
        return max(self.matrix + self.memory, self.starting)

    @property
    def total(self) -> float:
        """Seconds of the whole iteration."""
        return self.computing + self.sending + self.offloaded


def predict_iteration(plan: Plan, device: Device, *, gpus: int = GPUS_PER_NODE) -> Duration:
    """Predict the duration of one iteration.

    Args:
        plan: Plan of the run.
        device: Device of each rank.
        gpus: Number of devices per node. With fewer ranks there is one node.

    Returns:
        Seconds by cause.
    """
    decoding = plan.rewards.flops if plan.rewards else 0.0
    computing = Duration(
        matrix=(plan.flops() + decoding) / matrix_rate(plan, device),
        memory=plan.moved() / memory_rate(device),
        starting=plan.kernels() * KERNEL_SECONDS,
        sending=0.0,
        offloaded=0.0,
    )
    return Duration(
        matrix=computing.matrix,
        memory=computing.memory,
        starting=computing.starting,
        sending=_sending(plan, device, gpus, computing.computing),
        offloaded=_offloaded(plan, device, gpus),
    )


def predict_samples(plan: Plan, device: Device) -> float:
    """Predict the time of all network calls that generate samples during a run.

    These are the student's samples while it trains, and the teacher's many-step samples: once at
    the end and once for the guard.

    Args:
        plan: Plan of the run.
        device: Device of each rank.

    Returns:
        Seconds.
    """
    log, call = plan.config.log, plan.calls.network
    each = call.forward_flops / matrix_rate(plan, device) + call.forward_moved / memory_rate(device)
    times = (plan.config.steps - 1) // log.sample_every + 1 if log.sample_every else 1
    count, guarded = count_samples(plan.config, plan.prompts), GuardCalls.of(plan)
    calls = count * (
        times * plan.config.grid.calls + log.teacher_steps * teacher_calls(plan.config)
    )
    calls += guarded.once + times * guarded.each
    return calls * each / plan.config.batch.micro


def matrix_rate(plan: Plan, device: Device) -> float:
    """Return the assumed rate of matrix products in the run's dtype.

    Args:
        plan: Plan of the run.
        device: Device of each rank.

    Returns:
        FLOP/s.
    """
    half = bytes_per_value(torch_dtype(plan.config.model)) < 4
    return MATRIX_SHARE * 1e12 * (device.tflops if half else device.tflops_float32)


def memory_rate(device: Device) -> float:
    """Return the assumed memory bandwidth that elementwise kernels reach.

    Args:
        device: Device of each rank.

    Returns:
        Bytes per second.
    """
    return MEMORY_SHARE * 1e12 * device.bandwidth


def _sending(plan: Plan, device: Device, gpus: int, computing: float) -> float:
    """Return the seconds of an iteration's collectives that computation does not hide."""
    traffic, parallel, micros = plan.traffic(), plan.config.parallel, plan.config.batch.accumulation
    if not traffic:
        return 0.0
    rate, delay = _ring_rate(device, plan.ranks, gpus), _ring_delay(plan.ranks, gpus)
    gathers = plan.base_uses * micros * math.ceil(plan.weights.called / FETCHED)
    weights = traffic["weights"] / rate + delay * gathers * (parallel.zero_stage == 3)
    trained = (traffic["gradients"] + traffic["updated weights"]) / rate
    updates = delay * len(plan.config.objective.roles)
    tokens = 0.0
    if parallel.sequence > 1:
        calls = plan.calls.forwards + (1 + plan.checkpointing) * plan.calls.backwards
        tokens = traffic["tokens"] / _ring_rate(device, parallel.sequence, gpus)
        times = ALL_TO_ALLS * plan.tokens.blocks * calls * micros
        tokens += times * _ring_delay(parallel.sequence, gpus)
    ahead = max(HIDDEN * weights - computing, 0.0)
    return (1 - HIDDEN) * weights + ahead + trained + updates + tokens


def _ring_rate(device: Device, ranks: int, gpus: int) -> float:
    """Return the bytes per second that each rank of a ring sends. Between nodes, all adapters of a
    node work at once in parallel rings.
    """
    inside = device.link
    return LINK_SHARE * 1e9 * (min(inside, gpus * device.network) if ranks > gpus else inside)


def _ring_delay(ranks: int, gpus: int) -> float:
    """Return the latency in seconds of an empty collective around a ring."""
    nodes = math.ceil(ranks / gpus)
    between = nodes if nodes > 1 else 0
    return START + (ranks - 1 - between) * HOP + between * HOP_BETWEEN_NODES


def _offloaded(plan: Plan, device: Device, gpus: int) -> float:
    """Return the seconds of an iteration that offloading to CPU memory takes."""
    offload, rate = plan.config.parallel.offload, LINK_SHARE * 1e9 * device.host
    swapped = plan.swaps * plan.whole / plan.weights.experts / rate
    if offload == "none":
        return swapped
    trained = plan.weights.trained / plan.ranks
    updates = trained * min(gpus, plan.ranks) / HOST_ADAM + 2 * 4 * trained / rate
    if offload != "all":
        return updates
    uses = plan.base_uses * plan.config.batch.accumulation
    return updates + uses * plan.whole / plan.weights.experts / plan.ranks / rate
