"""What to change about a run that does not fit into a device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..config import RunConfig
from .plan import Plan, make_plan
from .units import GIB, gib

SECTIONS = {
    **dict.fromkeys(("dtype", "quantize", "tiling"), "model"),
    **dict.fromkeys(("frames", "height", "width"), "video"),
    "micro": "batch",
}
"""Section of the settings that remedies change; the others are of `parallel`."""
EMBEDDING = "embedding the prompts"
OF_WEIGHTS = ("loading the base", EMBEDDING)
"""Moments that hold whole weights and nothing else, whatever is generated."""
SIDES = 32
"""Pixels that most teachers' sides divide by."""
WHOLE = {"quantize": "none", "compile": False}
"""What goes with sharded and offloaded weights: a base that is neither quantised nor compiled."""


@dataclass(frozen=True)
class Remedy:
    """Other settings for a run, on how many ranks, and its plan with them."""

    changes: dict[str, Any]
    ranks: int
    plan: Plan

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        notes = {"sequence": f" on {self.ranks} ranks", "offload": " (under deepspeed)"}
        return " and ".join(
            f"{SECTIONS.get(key, 'parallel')}.{key}={str(value).lower()}" + notes.get(key, "")
            for key, value in self.changes.items()
        )


def check_fit(plan: Plan, device_memory: float) -> None:
    """Check that every moment of a run fits into the memory of the first rank's device.

    Args:
        plan: the run.
        device_memory: GiB of the device.

    Raises:
        ValueError: it does not fit; the message has the first remedy that helps, planned before it
            is named, or says that none does.
    """
    limit = device_memory * GIB
    if plan.total() <= limit:
        return
    needs = (
        f"this run needs {gib(plan.total())} on the first rank, {plan.narrowest}, more than"
        f" {device_memory:g} GiB"
    )
    best = Remedy({}, plan.ranks, plan)
    for remedy in _remedies(plan):
        if remedy.plan.total() <= limit:
            remedy = _without_excess(remedy, plan, limit)
            raise ValueError(f"{needs}: {remedy} needs {gib(remedy.plan.total())}")
        if remedy.ranks == plan.ranks and remedy.plan.total() <= best.plan.total():
            best = remedy
    if (half := _half_precision(best)) and half.plan.total() <= limit:
        raise ValueError(f"{needs}: {half} needs {gib(half.plan.total())}")
    for remedy in (Remedy({}, plan.ranks, plan), best):
        if rest := _embedded_ahead(remedy, limit):
            raise ValueError(f"{needs}: {rest}")
    if floor := _weights_alone(best.plan, limit):
        raise ValueError(f"{needs}: {floor}{_later(plan, limit)}")
    for remedy in _smaller(best):
        if remedy.plan.total() <= limit:
            remedy = _without_excess(remedy, plan, limit)
            raise ValueError(
                f"{needs}: {remedy} needs {gib(remedy.plan.total())}{_later(plan, limit)}"
            )
    raise ValueError(
        f"{needs}: no other settings, batch, number of frames or size that were tried fit; with"
        f" {best or 'its own settings'} it needs {gib(best.plan.total())}, {best.plan.narrowest}"
        f"{_later(plan, limit)}"
    )


def _half_precision(best: Remedy) -> Remedy | None:
    """Return the run in bfloat16, on top of other settings; None if it is not in float32."""
    config, changes = best.plan.config, best.changes | {"dtype": "bfloat16"}
    if config.model.dtype != "float32":
        return None
    try:
        return Remedy(changes, best.ranks, make_plan(_changed(config, changes), ranks=best.ranks))
    except ValueError:  # this teacher cannot have it
        return None


def _embedded_ahead(best: Remedy, limit: float) -> str:
    """Say how a run fits whose text encoder alone does not; "" if it is not that alone."""
    moments = best.plan.moments()
    others = max(size for moment, size in moments.items() if moment != EMBEDDING)
    if others > limit:
        return ""
    return (
        f"{EMBEDDING} needs {gib(moments[EMBEDDING])}; embed them ahead on the CPU, by"
        " `tdmvid embed` with this config and CUDA_VISIBLE_DEVICES='', and"
        f" {'with ' + str(best) if best else 'the run'} needs {gib(others)}"
    )


def _weights_alone(plan: Plan, limit: float) -> str:
    """Say which weights alone are too large, whatever is set; "" if none are."""
    for moment in OF_WEIGHTS:
        needed = plan.moments()[moment]
        if needed > limit:
            return (
                f"{moment} alone needs {gib(needed)}, whatever is generated, and no setting of this"
                " run changes that: use a larger device, or a smaller teacher"
            )
    return ""


def _later(plan: Plan, limit: float) -> str:
    """Say what becomes of a run that has no room only after it has trained."""
    if plan.moments()["training"] > limit:
        return ""
    return (
        "; as it is, it would leave its last checkpoint, which `tdmvid export` exports on a larger"
        " device, or with CUDA_VISIBLE_DEVICES='' on the CPU"
    )


def _smaller(best: Remedy) -> Iterator[Remedy]:
    """What to generate less of, on top of the settings that need least."""
    config = best.plan.config
    video = config.video
    attempts: list[dict[str, Any]] = []
    if config.batch.micro > 1:
        attempts += [{"micro": config.batch.micro // 2}, {"micro": 1}]
    one = {"micro": 1} if config.batch.micro > 1 else {}
    for share in (2, 4):
        fewer = {"frames": (video.frames - 1) // share // 8 * 8 + 1} if video.frames > 1 else {}
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
        except ValueError:  # a size that this teacher does not generate
            continue
        yield Remedy(changes, best.ranks, made)


def _remedies(plan: Plan) -> Iterator[Remedy]:
    """What to change so that a rank needs less, each on top of those before it."""
    config = plan.config
    now = vars(config.video) | vars(config.batch) | vars(config.parallel) | vars(config.model)
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
    """A run with other settings; `batch.total` is shared out anew."""
    sections: dict[str, dict[str, Any]] = {}
    if config.batch.total:
        sections["batch"] = {"accumulation": 1}
    for key, value in changes.items():
        sections.setdefault(SECTIONS.get(key, "parallel"), {})[key] = value
    return replace(
        config,
        **{name: replace(getattr(config, name), **given) for name, given in sections.items()},
    )
