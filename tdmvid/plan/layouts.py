"""Search for the fastest layout of a run on given devices that fits into their memory.

The networks are traced once for each combination of sequence-parallel ranks and micro-batch size.
Everything else is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..config import RunConfig, global_batch, share_batch
from ..parallel.launch import check_sequence
from ..roles.rules import check_settings
from .calls import calls_per_iteration
from .make import check_backend, make_plan
from .plan import Plan
from .price import Price, Terms, price_run
from .units import GIB

LARGEST_MICRO = 8
"""Largest micro-batch that the search tries."""
RECOMPUTED: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": False, "keep_attention": False},
    {"gradient_checkpointing": True, "keep_attention": True},
    {"gradient_checkpointing": True, "keep_attention": False},
)
"""Checkpointing settings that the search tries."""
Progress = Callable[[int], object]
"""Called before each trace with the number of traces left."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to distribute a run, with its plan and its price."""

    plan: Plan
    price: Price
    accumulation: int = 1
    """`batch.accumulation` of the config that was given. If it is not 1, it could contradict
    `batch.total`, so the settings reset it.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that the search chooses, by dotted name."""
        config, parallel = self.plan.config, self.plan.config.parallel
        return {
            "parallel.zero_stage": parallel.zero_stage,
            "parallel.sequence": parallel.sequence,
            "batch.micro": config.batch.micro,
            **({"batch.accumulation": 1} if self.accumulation != 1 else {}),
            "batch.total": config.batch.total,
            "parallel.gradient_checkpointing": parallel.gradient_checkpointing,
            "parallel.keep_attention": parallel.keep_attention,
            "parallel.offload": parallel.offload,
            "model.quantize": config.model.quantize,
        }

    @property
    def twin(self) -> tuple[Any, ...]:
        """The settings shared by layouts that differ only in sharding and offloading."""
        config = self.plan.config
        parallel = config.parallel
        recomputed = (parallel.gradient_checkpointing, parallel.keep_attention)
        return parallel.sequence, config.batch.micro, *recomputed, config.model.quantize


def find_layouts(
    config: RunConfig,
    *,
    ranks: int,
    terms: Terms,
    limit: float,
    count: int = 3,
    progress: Progress | None = None,
    traces: dict[tuple[int, int], Plan] | None = None,
) -> list[Layout]:
    """Return the fastest layouts that fit.

    Of layouts that differ only in sharding or offloading, only the fastest is returned.

    Args:
        config: Settings of the run. The global batch is kept.
        ranks: Number of devices.
        terms: Device, and number of devices per node.
        limit: Memory limit of each device in bytes.
        count: Maximum number of layouts to return.
        progress: Called before each trace with the number of traces left.
        traces: Plans of this run from earlier searches, by (sequence, micro-batch), made for any
            number of ranks. New ones are added.

    Returns:
        Layouts, fastest first.

    Raises:
        ValueError: The settings are for one rank only, the batch cannot be split over the devices,
            or no layout fits.
    """
    check_backend(config, ranks)
    found = [
        Layout(plan=plan, price=price_run(plan, terms), accumulation=config.batch.accumulation)
        for plan in _candidates(config, ranks, terms.gpus, progress, traces)
    ]
    fitting = sorted(
        (layout for layout in found if layout.plan.total() <= limit),
        key=lambda layout: (layout.price.iteration, layout.plan.total()),
    )
    if not fitting:
        least = min(found, key=lambda layout: layout.plan.total()).plan
        raise ValueError(
            f"no layout on {ranks} x {terms.device.name} fits in {limit / GIB:.1f} GiB per device:"
            f" the smallest needs {least.total() / GIB:.1f} GiB while {least.narrowest}; use more"
            f" or larger devices, or run `tdmvid plan --ranks {ranks} --device-memory"
            f" {terms.device.memory:g}` without --nodes and --gpus to see which settings to reduce"
        )
    chosen: dict[tuple[Any, ...], Layout] = {}
    for layout in fitting:
        chosen.setdefault(layout.twin, layout)
    return list(chosen.values())[:count]


def plan_layout(
    config: RunConfig,
    *,
    ranks: int,
    traces: dict[tuple[int, int], Plan],
) -> Plan:
    """Plan a run with `batch.total` as it is configured, reusing traces of earlier searches.

    Args:
        config: Settings of the run.
        ranks: Number of devices.
        traces: Shared traces, as in `find_layouts`. New ones are added.

    Returns:
        The plan.
    """
    return _traced(config, ranks, config.parallel.sequence, traces)


def _candidates(
    config: RunConfig,
    ranks: int,
    gpus: int,
    progress: Progress | None,
    traces: dict[tuple[int, int], Plan] | None,
) -> Iterator[Plan]:
    """Yield a plan of every layout that the settings allow.

    Raises:
        ValueError: There is none.
    """
    total = config.batch.total or global_batch(
        config.batch, max(1, ranks // config.parallel.sequence)
    )
    traces = {} if traces is None else traces
    shares = list(_shares(total, ranks, gpus))
    if not shares:
        if not config.batch.total:
            check_sequence(config.parallel.sequence, ranks)
        raise ValueError(
            f"batch.total={total} cannot be split over {ranks:,} devices, even if up to {gpus}"
            f" devices share a video: set it to a multiple of {-(-ranks // gpus)}"
        )
    refused: dict[int, ValueError] = {}
    made = False
    for sequence, micro in shares:
        batch = replace(config.batch, micro=micro, total=total, accumulation=1)
        if progress and (sequence, micro) not in traces:
            progress(sum(share not in traces for share in shares))
        try:
            traced = _traced(replace(config, batch=batch), ranks, sequence, traces)
        except ValueError as error:  # sequence parallelism that this teacher or method rejects
            refused.setdefault(sequence, error)
            continue
        for plan in _variants(traced):
            made = True
            yield plan
    if not made:
        raise _reason(config, ranks, {sequence for sequence, _ in shares}, refused)


def _reason(
    config: RunConfig, ranks: int, tried: set[int], refused: dict[int, ValueError]
) -> ValueError:
    """Return why no layout is valid. `refused` has errors by the sequence-parallel ranks that were
    tried. What the config itself asks for comes first, because the user can change that.
    """
    own = config.parallel.sequence
    unknown = ValueError(f"no layout on {ranks} devices is valid for this run")
    if own in tried:
        return refused.get(own, unknown)
    try:
        check_sequence(own, ranks)
        smallest = replace(config.batch, micro=1, accumulation=1)
        share_batch(replace(config, batch=smallest), ranks // own)
    except ValueError as error:
        return error
    return next(iter(refused.values()), unknown)


def _shares(total: int, ranks: int, gpus: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of sequence-parallel ranks (within a node) and micro-batch sizes that give the
    total batch. With sequence parallelism the micro-batch is 1.
    """
    for sequence in range(1, gpus + 1):
        if ranks % sequence or gpus % sequence or total % (ranks // sequence):
            continue
        share = total // (ranks // sequence)
        largest = min(share, LARGEST_MICRO) if sequence == 1 else 1
        yield from ((sequence, micro) for micro in range(1, largest + 1) if share % micro == 0)


def _traced(
    config: RunConfig,
    ranks: int,
    sequence: int,
    traces: dict[tuple[int, int], Plan],
) -> Plan:
    """Return the plan of a run with the given micro-batch and sequence parallelism, and default
    sharding.
    """
    micro = config.batch.micro
    if (sequence, micro) not in traces:
        like = next(iter(traces.values()), None)
        plain = _plain(config, sequence, micro)
        traces[sequence, micro] = make_plan(plain, ranks=sequence, like=like)
    traced = traces[sequence, micro]
    accumulation = config.batch.total // (micro * (ranks // sequence))
    config = replace(
        config,
        batch=replace(config.batch, accumulation=accumulation),
        parallel=replace(config.parallel, sequence=sequence),
    )
    forwards, backwards = calls_per_iteration(config)
    calls = replace(traced.calls, forwards=forwards, backwards=backwards)
    rollouts = 1 if config.objective.rollout == "stream" else accumulation
    return replace(traced, config=config, ranks=ranks, calls=calls, swaps=traced.swaps * rollouts)


def _plain(config: RunConfig, sequence: int, micro: int) -> RunConfig:
    """Return a config with the same cost per call, one micro-batch per rank, and no quantization or
    offloading.
    """
    return replace(
        config,
        batch=replace(config.batch, micro=micro, total=0, accumulation=1),
        model=replace(config.model, quantize="none"),
        parallel=replace(
            config.parallel, sequence=sequence, zero_stage=2, offload="none", backend="auto"
        ),
    )


def _variants(traced: Plan) -> Iterator[Plan]:
    """Yield plans with the same traces and all combinations of the settings that traces do not
    depend on.
    """
    alone = traced.ranks == 1
    rounded: Plan | None = None
    offloads = ("none", "optimizer", "all")
    for stage, recomputed, offload in product(
        (3,) if alone else (0, 1, 2, 3), RECOMPUTED, offloads
    ):
        given = recomputed | {"zero_stage": stage, "offload": offload}
        try:
            plan = _changed(traced, given, quantize="none")
        except ValueError:
            continue
        yield plan
        if alone and offload == "none":
            try:
                config = _changed(traced, given, quantize="int8").config
                rounded = make_plan(config, like=rounded or plan)
            except ValueError:
                continue
            yield rounded


def _changed(traced: Plan, parallel: dict[str, Any], *, quantize: Any) -> Plan:
    """Return a plan with other settings. Raises ValueError if the run would reject them."""
    config = traced.config
    config = replace(
        config,
        parallel=replace(config.parallel, **parallel),
        model=replace(config.model, quantize=quantize),
    )
    check_settings(config, distributed=traced.ranks > 1 or parallel["offload"] != "none")
    forwards, backwards = calls_per_iteration(config)
    calls = replace(traced.calls, forwards=forwards, backwards=backwards)
    return replace(traced, config=config, calls=calls)
