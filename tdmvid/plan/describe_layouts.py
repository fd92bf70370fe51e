"""Print the fastest layouts as text, each with the reasons for its settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..config.rules import shown
from .calls import graded_twice
from .devices import Device
from .layouts import Layout
from .plan import Plan
from .price import Terms
from .units import GIB, gib, hours, number

USABLE = 0.92
"""Share of a device's memory that a layout may use. The rest is left for PyTorch's workspace and
for memory that a plan does not count.
"""


def layout_limit(device: Device, device_memory: float) -> float:
    """Return the number of bytes that a layout may need.

    Args:
        device: Device of each rank.
        device_memory: Limit in GiB; 0 takes `USABLE` of the device's memory.

    Returns:
        Bytes per device.
    """
    return GIB * (device_memory or USABLE * device.memory)


def describe_layouts(layouts: Sequence[Layout], *, limit: float, terms: Terms) -> str:
    """Return layouts as text, fastest first.

    Args:
        layouts: Result of `find_layouts`.
        limit: Memory limit of each device in bytes.
        terms: Device and node size that the layouts were priced with.

    Returns:
        A heading, then for each layout its cost, its settings as `--set` options, and the reasons.
    """
    ranks = layouts[0].plan.ranks
    lines = [
        f"fastest layouts on {ranks:,} x {terms.device.name}, with up to {gib(limit)} per device"
        " (estimated):"
    ]
    for place, layout in enumerate(layouts, start=1):
        plan, price = layout.plan, layout.price
        words = " ".join(f"--set {name}={_value(x)}" for name, x in layout.settings.items())
        lines += [
            f"{place}. {hours(price.hours)}, {number(price.gpu_hours)} GPU-hours,"
            f" {number(price.iteration)} s per iteration, {gib(plan.total())}: {words}",
            *(f"   - {reason}" for reason in layout_reasons(plan, limit)),
        ]
    return "\n".join(lines)


def layout_reasons(plan: Plan, limit: float) -> Iterator[str]:
    """Yield the reason for each setting of a layout.

    Args:
        plan: Plan of the layout.
        limit: Memory limit of each device in bytes.

    Yields:
        One sentence per group of settings.
    """
    yield from _sharing(plan)
    yield _recomputing(plan, limit)
    yield from _sharding(plan, limit)


def _sharing(plan: Plan) -> Iterator[str]:
    batch, sequence = plan.config.batch, plan.config.parallel.sequence
    repeated = graded_twice(replace(plan.config, batch=replace(batch, accumulation=2)))
    if sequence > 1 and batch.total < plan.ranks:
        yield (
            f"{sequence} devices share each video, because batch.total={batch.total} is smaller"
            f" than the number of devices"
        )
    elif sequence > 1:
        yield f"{sequence} devices share each video, so each keeps 1/{sequence} of its activations"
    if batch.accumulation > 1:
        yield (
            f"{batch.accumulation} micro-batches run one after the other"
            + ", and each makes the student's graded call twice" * repeated
            + "; larger or fewer micro-batches are slower or do not fit"
        )
    elif batch.micro > 1:
        yield (
            f"all {batch.micro} videos of a device are in one micro-batch"
            + ", so the student's graph is kept and its graded call is made only once" * repeated
        )


def _recomputing(plan: Plan, limit: float) -> str:
    parallel = plan.config.parallel
    kept = gib(plan.memory()["activations"])
    plain = _with(plan, gradient_checkpointing=False, keep_attention=False)
    if not parallel.gradient_checkpointing:
        return f"activations of {kept} fit, so nothing is recomputed"
    least = _with(plan, keep_attention=False)
    if parallel.keep_attention:
        saved = 1 - plan.flops() / least.flops()
        return (
            f"attention outputs are kept ({kept} of activations), which saves {saved:.0%} of the"
            f" compute; without gradient checkpointing the run would need {gib(plain.total())}"
        )
    try:
        more = _with(plan, keep_attention=True).total()
    except ValueError:  # the kernel or compiled blocks do not support it
        more = 0.0
    return (
        "blocks are recomputed: without gradient checkpointing the run would need"
        f" {gib(plain.total())}"
        + (f", with parallel.keep_attention {gib(more)}" if more > limit else "")
    )


def _sharding(plan: Plan, limit: float) -> Iterator[str]:
    config, stage = plan.config, plan.config.parallel.zero_stage
    if config.model.quantize != "none":
        held = gib(plan.weights.base_bytes)
        yield f"the frozen base is quantized to {config.model.quantize} and takes {held}"
    if config.parallel.offload != "none":
        here = _with(plan, offload="none")
        yield (
            f"offloading ({config.parallel.offload}) frees {gib(here.total() - plan.total())} of"
            f" device memory{' and needs a launcher' * (plan.ranks == 1)}"
        )
    if plan.ranks == 1:
        return
    if stage < 3:
        yield (
            f"each device holds the whole base ({gib(plan.weights.base_bytes)}), so only gradients"
            " and updated weights are sent"
        )
        return
    whole = _with(plan, zero_stage=2, offload="none")
    gathered = gib(plan.traffic()["weights"])
    if whole.total() > limit:
        yield (
            f"the base is sharded, because the run would need {gib(whole.total())} with a whole"
            f" copy; gathering {gathered} per iteration is mostly hidden behind compute"
        )
    else:
        yield (
            "the base is sharded although a whole copy fits: gathering"
            f" {gathered} per iteration is mostly hidden behind compute"
        )


def _with(plan: Plan, **parallel: Any) -> Plan:
    """Return the plan with other parallel settings that change neither the traces nor the number of
    calls. Raises ValueError if the run would reject them.
    """
    config = plan.config
    return replace(plan, config=replace(config, parallel=replace(config.parallel, **parallel)))


def _value(value: object) -> str:
    return value if isinstance(value, str) else shown(value)
