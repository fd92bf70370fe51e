"""The quickest layouts as text, each with its reasons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..config.rules import shown
from .devices import Device
from .layouts import Layout
from .plan import Plan
from .price import Terms
from .units import GIB, gib, hours, number

USABLE = 0.92
"""Of a device's memory that a layout may be planned with: the rest is the library's workspace, and
what the plan does not know.
"""


def layout_limit(device: Device, device_memory: float) -> float:
    """Return the bytes that a layout may need.

    Args:
        device: What each rank has.
        device_memory: GiB to take instead, 0 for USABLE of the device's.
    """
    return GIB * (device_memory or USABLE * device.memory)


def describe_layouts(layouts: Sequence[Layout], *, limit: float, terms: Terms) -> str:
    """Return layouts as text, the quickest first.

    Args:
        layouts: What `find_layouts` returned.
        limit: Bytes that each may need.
        terms: On what they were priced.
    """
    ranks = layouts[0].plan.ranks
    lines = [
        f"the quickest layouts on {ranks:,} x {terms.device.name}, up to {gib(limit)} each"
        " (estimated):"
    ]
    for place, layout in enumerate(layouts, start=1):
        plan, price = layout.plan, layout.price
        words = " ".join(f"--set {name}={_value(x)}" for name, x in layout.settings.items())
        lines += [
            f"{place}. {hours(price.hours)}, {number(price.gpu_hours)} GPU-hours,"
            f" {number(price.iteration)} s an iteration, {gib(plan.total())}: {words}",
            *(f"   - {reason}" for reason in layout_reasons(plan, limit)),
        ]
    return "\n".join(lines)


def layout_reasons(plan: Plan, limit: float) -> Iterator[str]:
    """Say why each setting of a layout is as it is."""
    yield from _sharing(plan)
    yield _recomputing(plan, limit)
    yield from _sharding(plan, limit)


def _sharing(plan: Plan) -> Iterator[str]:
    batch, sequence = plan.config.batch, plan.config.parallel.sequence
    if sequence > 1 and batch.total < plan.ranks:
        yield (
            f"{sequence} devices share a video, as batch.total={batch.total} has fewer videos than"
            f" there are devices"
        )
    elif sequence > 1:
        yield f"{sequence} devices share a video, so each keeps 1/{sequence} of its activations"
    if batch.accumulation > 1:
        yield (
            f"{batch.accumulation} micro-batches one after the other, each of which calls the"
            " student twice: larger ones, or fewer, are slower or do not fit"
        )
    elif batch.micro > 1:
        yield (
            f"all {batch.micro} videos of a device are in one micro-batch, so the student's graph"
            " is kept and its graded call made once"
        )


def _recomputing(plan: Plan, limit: float) -> str:
    parallel = plan.config.parallel
    kept = gib(plan.memory()["activations"])
    plain = _with(plan, gradient_checkpointing=False, keep_attention=False)
    if not parallel.gradient_checkpointing:
        return f"activations of {kept} fit, so nothing is computed again"
    least = _with(plan, keep_attention=False)
    if parallel.keep_attention:
        saved = 1 - plan.flops() / least.flops()
        return (
            f"attention's outputs fit, {kept} of activations, so {saved:.0%} of the work is saved;"
            f" without checkpointing it would need {gib(plain.total())}"
        )
    more = _with(plan, keep_attention=True)
    return (
        f"blocks are computed again: without checkpointing it would need {gib(plain.total())}"
        + (f", with attention kept {gib(more.total())}" if more.total() > limit else "")
    )


def _sharding(plan: Plan, limit: float) -> Iterator[str]:
    config, stage = plan.config, plan.config.parallel.zero_stage
    if config.model.quantize != "none":
        held = gib(plan.weights.base_bytes)
        yield f"the frozen base is rounded to {config.model.quantize} and takes {held}"
    if config.parallel.offload != "none":
        here = _with(plan, offload="none")
        yield (
            f"offloading ({config.parallel.offload}) leaves {gib(here.total() - plan.total())} of"
            f" the device's memory{', started by a launcher' * (plan.ranks == 1)}"
        )
    if plan.ranks == 1:
        return
    if stage < 3:
        yield (
            f"each device holds the whole base, {gib(plan.weights.base_bytes)}, so only gradients"
            " and updates are sent"
        )
        return
    whole = _with(plan, zero_stage=2, offload="none")
    gathered = gib(plan.traffic()["weights"])
    if whole.total() > limit:
        yield (
            f"the base is sharded: whole it would need {gib(whole.total())}; {gathered} of gathers"
            " an iteration are mostly hidden"
        )
    else:
        yield f"the base is sharded, though a whole one fits: {gathered} of gathers mostly hide"


def _with(plan: Plan, **parallel: Any) -> Plan:
    """The plan with other settings that change neither traces nor the number of calls."""
    config = plan.config
    return replace(plan, config=replace(config, parallel=replace(config.parallel, **parallel)))


def _value(value: object) -> str:
    return value if isinstance(value, str) else shown(value)
