"""Find settings that make a run fit into a device's memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config import RunConfig
from .make import make_plan
from .plan import Plan
from .units import GIB, gib

SECTIONS = {
    **dict.fromkeys(("dtype", "quantize", "tiling"), "model"),
    **dict.fromkeys(("frames", "height", "width"), "video"),
    "micro": "batch",
}
"""Config section of each setting that a remedy changes. Settings that are not listed belong to
`parallel`.
"""
EMBEDDING = "embedding the prompts"
"""Phase that loads the text encoders."""
OF_WEIGHTS = ("loading the base", EMBEDDING)
"""Phases that hold only whole weights, so their memory does not depend on what is generated."""
SIDES = 32
"""Frame heights and widths of most teachers are divisible by this number of pixels."""
WHOLE = {"quantize": "none", "compile": False}
"""Settings that sharded or offloaded weights require: a base that is neither quantized nor
compiled.
"""


@dataclass(frozen=True)
class Remedy:
    """Changed settings for a run, the number of ranks, and the resulting plan."""

    changes: dict[str, Any]
    ranks: int
    plan: Plan

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        batch = self.plan.config.batch
        notes = {
            "sequence": f" on {self.ranks} ranks",
            "offload": " (with DeepSpeed)",
            "micro": "" if batch.total else f" and batch.accumulation={batch.accumulation}",
        }
        return " and ".join(
            f"{SECTIONS.get(key, 'parallel')}.{key}={str(value).lower()}" + notes.get(key, "")
            for key, value in self.changes.items()
        )


def check_fit(plan: Plan, device_memory: float) -> None:
    """Check that every phase of a run fits into the memory of the first rank's device.

    Args:
        plan: Plan of the run.
        device_memory: Memory of the device in GiB.

    Raises:
        ValueError: The run does not fit. The message names the first remedy that makes it fit,
            which has itself been planned, or states that none does.
    """
    limit = device_memory * GIB
    if plan.total() <= limit:
        return
    needs = (
        f"this run needs {gib(plan.total())} on the first rank while {plan.narrowest}, more than"
        f" the {device_memory:g} GiB of the device"
    )
    best = Remedy({}, plan.ranks, plan)
    for remedy in _remedies(plan):
        if remedy.plan.total() <= limit:
            remedy = _without_excess(remedy, plan, limit)
            raise ValueError(f"{needs}: with {remedy} it needs {gib(remedy.plan.total())}")
        if remedy.ranks == plan.ranks and remedy.plan.total() <= best.plan.total():
            best = remedy
    if (half := _half_precision(best)) and half.plan.total() <= limit:
        raise ValueError(f"{needs}: with {half} it needs {gib(half.plan.total())}")
    for remedy in (Remedy({}, plan.ranks, plan), best):
        if rest := _embedded_ahead(remedy, limit):
            raise ValueError(f"{needs}: {rest}")
    if floor := _weights_alone(best.plan, limit):
        raise ValueError(f"{needs}: {floor}{_later(plan, limit)}")
    for remedy in _smaller(best):
        if remedy.plan.total() <= limit:
            remedy = _without_excess(remedy, plan, limit)
            raise ValueError(
                f"{needs}: with {remedy} it needs {gib(remedy.plan.total())}{_later(plan, limit)}"
            )
    raise ValueError(
        f"{needs}: none of the settings, batch sizes, frame counts and frame sizes that were tried"
        f" fit; with {best or 'the current settings'} it needs {gib(best.plan.total())} while"
        f" {best.plan.narrowest}{_later(plan, limit)}"
    )


def _half_precision(best: Remedy) -> Remedy | None:
    """Return the remedy with bfloat16 added; None if the run is not in float32."""
    config, changes = best.plan.config, best.changes | {"dtype": "bfloat16"}
    if config.model.dtype != "float32":
        return None
    try:
        return Remedy(changes, best.ranks, make_plan(_changed(config, changes), ranks=best.ranks))
    except ValueError:  # not supported by this teacher
        return None


def _embedded_ahead(best: Remedy, limit: float) -> str:
    """Return how to embed the prompts before the run if only the text encoder does not fit; else
    "".
    """
    moments = best.plan.moments()
    others = max(size for moment, size in moments.items() if moment != EMBEDDING)
    if others > limit:
        return ""
    return (
        f"only {EMBEDDING} does not fit ({gib(moments[EMBEDDING])}); embed them on the CPU first,"
        " with `tdmvid embed`, this config and CUDA_VISIBLE_DEVICES=''; the run then needs"
        f" {gib(others)}{' with ' + str(best) if best else ''}"
    )


def _weights_alone(plan: Plan, limit: float) -> str:
    """Return which weights alone exceed the limit with any settings; "" if none do."""
    for moment in OF_WEIGHTS:
        needed = plan.moments()[moment]
        if needed > limit:
            return (
                f"{moment} alone needs {gib(needed)} for any frame size and batch, and no setting"
                " of this run changes that: use a larger device or a smaller teacher"
            )
    return ""


def _later(plan: Plan, limit: float) -> str:
    """Return what happens if the run only runs out of memory after training; "" if training does
    not fit.
    """
    if plan.moments()["training"] > limit:
        return ""
    return (
        "; with the current settings the training itself fits, and `tdmvid export` can export its"
        " last checkpoint on a larger device, or on the CPU with CUDA_VISIBLE_DEVICES=''"
    )


def _smaller(best: Remedy) -> Iterator[Remedy]:
    """Yield remedies with smaller batches, fewer frames or smaller frames, on top of `best`."""
    config = best.plan.config
    video = config.video
    attempts: list[dict[str, Any]] = []
    if config.batch.micro > 1:
        attempts += [{"micro": config.batch.micro // 2}, {"micro": 1}]
    one = {"micro": 1} if config.batch.micro > 1 else {}
    for share in (2, 4):
        frames = (video.frames - 1) // share // 8 * 8 + 1
        fewer = {"frames": frames} if frames > 1 else {}  # a video stays a video
        sides = {
            name: max(getattr(video, name) // share // SIDES * SIDES, SIDES)
            for name in ("height", "width")
        }
        attempts += [one | fewer, one | sides, one | fewer | sides]
    for attempt in attempts:
        if all(getattr(getattr(config, SECTIONS[key]), key) == x for key, x in attempt.items()):
            continue
        changes = best.changes | attempt
        try:
            made = make_plan(_changed(config, changes), ranks=best.ranks, like=best.plan)
        except ValueError:  # a size that this teacher does not support
            continue
        yield Remedy(changes, best.ranks, made)


def _remedies(plan: Plan) -> Iterator[Remedy]:
    """Yield remedies that reduce the memory of a rank, each on top of the previous ones."""
    config = plan.config
    now = vars(config.video) | vars(config.batch) | vars(config.parallel) | vars(config.model)
    changes: dict[str, Any] = {}
    for change, ranks in _attempts(plan):
        wanted = {key: value for key, value in (changes | change).items() if now[key] != value}
        if wanted == changes:
            continue
        try:
            better = make_plan(_changed(config, wanted), ranks=ranks, like=plan)
        except ValueError:  # not supported by this run
            continue
        changes = wanted
        yield Remedy(changes, ranks, better)


def _attempts(plan: Plan) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield settings to try, cheapest first, with the number of ranks."""
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
    """Return the remedy without the changes that are not needed. The number of ranks is kept."""
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
    """Return the config with other settings and the same number of samples per iteration."""
    sections: dict[str, dict[str, Any]] = {}
    batch = config.batch
    if batch.total:  # it is split again
        sections["batch"] = {"accumulation": 1}
    elif micro := changes.get("micro"):
        sections["batch"] = {"accumulation": math.ceil(batch.micro * batch.accumulation / micro)}
    for key, value in changes.items():
        sections.setdefault(SECTIONS.get(key, "parallel"), {})[key] = value
    return replace(
        config,
        **{name: replace(getattr(config, name), **given) for name, given in sections.items()},
    )
