"""What to change about a run that does not fit into a device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config import RunConfig
from .describe import gib
from .plan import GIB, Plan, make_plan

OF_MODEL = ("quantize", "tiling")
"""Remedies that are settings of `model`; the others are of `parallel`."""
WHOLE = {"quantize": "none", "compile": False}
"""What goes with sharded and offloaded weights: a base that is neither quantised nor compiled."""


@dataclass(frozen=True)
class Remedy:
    """Other settings for a run, on how many ranks, and its plan with them."""

    changes: dict[str, Any]
    ranks: int
    plan: Plan

    def __str__(self) -> str:
        notes = {"sequence": f" on {self.ranks} ranks", "offload": " (under deepspeed)"}
        return " and ".join(
            f"{'model' if key in OF_MODEL else 'parallel'}.{key}={str(value).lower()}"
            + notes.get(key, "")
            for key, value in self.changes.items()
        )


def check_fit(plan: Plan, device_memory: float) -> None:
    """Check that every moment of a run fits into the memory of the first rank's device.

    Args:
        plan: the run.
        device_memory: GiB of the device.

    Raises:
        ValueError: it does not fit; the message has the first remedy that helps.
    """
    limit = device_memory * GIB
    if plan.total() <= limit:
        return
    needs = (
        f"this run needs {gib(plan.total())} on the first rank, {plan.narrowest}, more than"
        f" {device_memory:g} GiB"
    )
    for remedy in _remedies(plan):
        if remedy.plan.total() <= limit:
            remedy = _without_excess(remedy, plan, limit)
            raise ValueError(f"{needs}: {remedy} needs {gib(remedy.plan.total())}")
    smaller = "fewer frames or pixels"
    if plan.config.batch.micro > 1:
        smaller += ", or a smaller batch.micro"
    later = ""
    if plan.moments()["training"] <= limit:
        later = (
            "; it would leave its last checkpoint, which `tdmvid export` exports on a larger"
            " device, or with CUDA_VISIBLE_DEVICES='' on the CPU"
        )
    raise ValueError(f"{needs}: use {smaller}{later}")


def _remedies(plan: Plan) -> Iterator[Remedy]:
    """What to change so that a rank needs less, each on top of those before it."""
    config = plan.config
    now = vars(config.parallel) | vars(config.model)
    changes: dict[str, Any] = {}
    for change, ranks in _attempts(plan):
        wanted = {key: value for key, value in (changes | change).items() if now[key] != value}
        if wanted == changes:
            continue
        try:
            better = make_plan(_changed(config, wanted), ranks=ranks, like=plan)
        except ValueError:  # this run cannot have it
            continue
        changes = wanted
        yield Remedy(changes, ranks, better)


def _attempts(plan: Plan) -> Iterator[tuple[dict[str, Any], int]]:
    """Settings to try, the cheapest first, and the number of ranks."""
    ranks = plan.ranks
    yield {"tiling": True}, ranks
    yield {"keep_attention": False}, ranks
    yield {"gradient_checkpointing": True}, ranks
    if ranks == 1 and plan.config.model.quantize == "none":
        yield {"quantize": "int8"}, 1
    yield {"zero_stage": 3, **WHOLE}, ranks
    yield {"offload": "all", **WHOLE}, ranks
    for sequence in (2, 4, 8, 16):
        yield {"sequence": sequence, **WHOLE}, max(sequence, ranks)


def _without_excess(remedy: Remedy, plan: Plan, limit: float) -> Remedy:
    """The remedy without the changes that came on the way and are not needed. More ranks are."""
    for key in list(remedy.changes):
        if key == "sequence" or len(remedy.changes) == 1:
            continue
        rest = {name: value for name, value in remedy.changes.items() if name != key}
        try:
            fewer = make_plan(_changed(plan.config, rest), ranks=remedy.ranks, like=remedy.plan)
        except ValueError:
            continue
        if fewer.total() <= limit:
            remedy = Remedy(rest, remedy.ranks, fewer)
    return remedy


def _changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """A run with other settings of `parallel` and `model`; `batch.total` is shared out anew."""
    model = {key: value for key, value in changes.items() if key in OF_MODEL}
    parallel = {key: value for key, value in changes.items() if key not in OF_MODEL}
    batch = replace(config.batch, accumulation=1) if config.batch.total else config.batch
    return replace(
        config,
        model=replace(config.model, **model),
        parallel=replace(config.parallel, **parallel),
        batch=batch,
    )
