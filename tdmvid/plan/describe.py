"""A plan as text: one row a number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..config import RunConfig, global_batch
from ..data.repetition import prompt_uses, repetition_warning
from .guard import GuardCalls
from .plan import Plan
from .price import Row, Terms, price_rows
from .units import gib, number


def describe(
    plan: Plan, *, device_memory: float = 0.0, evaluation: str = "", terms: Terms | None = None
) -> str:
    """Return the plan as text.

    Args:
        plan: what to describe.
        device_memory: GiB that a rank's device has, 0 if unknown.
        evaluation: what scores the finished run, if anything does.
        terms: on what its price is estimated.
    """
    rows = [
        *_networks(plan),
        *_iteration(plan),
        *_memory(plan, device_memory),
        *([("evaluation", evaluation)] if evaluation else []),
        ("writes", str(plan.config.folder)),
        *price_rows(plan, terms or Terms()),
    ]
    pad = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{pad}}  {value}" for name, value in rows)


def _networks(plan: Plan) -> Iterator[Row]:
    """What is trained, on what."""
    config, model, weights = plan.config, plan.config.model, plan.weights
    trained = weights.generators
    yield (
        "teacher",
        f"{model.path} ({plan.pipeline_class}), {weights.base:,} parameters in {model.dtype}"
        + (f", of {weights.experts} experts together" if weights.experts > 1 else ""),
    )
    if model.adapters:
        named = (f"{one.path} at scale {one.scale:g}" for one in model.adapters)
        yield "teacher's LoRAs", ", ".join(named)
    if model.quantize != "none":
        yield (
            "frozen base",
            f"linear layers of the blocks in {model.quantize}: {gib(weights.base_bytes)} instead"
            f" of {gib(plan.whole)}",
        )
    yield (
        "training",
        f"{config.training}: {' and '.join(trained)}, {weights.trainable:,} trainable parameters"
        + " each" * (len(trained) > 1),
    )
    if plan.calls.discriminator:
        yield (
            "discriminator",
            f"half of the network, frozen; {weights.heads:,} trainable parameters",
        )
    bases = 1 if config.parallel.share_base else len(trained)
    adapters = f"{bases} frozen base + {len(trained)} adapter" + "s" * (len(trained) > 1)
    whole = f"{1 + len(trained)} whole networks"
    yield "weights held", adapters if config.trains_lora else whole
    if config.init:
        there = Path(config.init).is_dir()
        yield "student starts from", config.init + ("" if there else " (not there yet)")
    yield "teacher's guidance", _guidance(config)
    yield "student", f"{config.grid.calls} steps, {config.grid.kind} grid"
    yield from _prompts(plan)


def _guidance(config: RunConfig) -> str:
    cfg, negative = config.objective.cfg, config.prompts.negative
    if not config.objective.guided:
        return "none"
    cut = negative if len(negative) <= 40 else f"{negative[:37]}..."
    second = config.objective.cfg_2
    pair = f"{cfg:g}" + ("" if second is None else f" and {second:g} by expert")
    return f"{pair}{_schedule(config)}, away from " + (
        f"prompts.negative={cut!r}" if cut else "the empty prompt"
    )


def _schedule(config: RunConfig) -> str:
    """How the guidance changes with time, if it does."""
    objective = config.objective
    low, high = objective.cfg_interval
    dynamic = f", dynamic over {config.log.teacher_steps} steps" * objective.use_dynamic_cfg
    limited = f" from t = {low:g} to {high:g}" * ((low, high) != (0, 1))
    return dynamic + limited


def _prompts(plan: Plan) -> Iterator[Row]:
    """How many prompts there are, how often each is used, and whether that is too often."""
    ranks = plan.ranks // plan.config.parallel.sequence
    uses = prompt_uses(plan.config, prompts=plan.prompts, ranks=ranks)
    yield "prompts", f"{plan.prompts:,}, each used {number(uses)} times"
    if warning := repetition_warning(plan.config, prompts=plan.prompts, ranks=ranks):
        yield "", f"warning: {warning}"


def _iteration(plan: Plan) -> Iterator[Row]:
    """The ranks, and what each does and sends in an iteration."""
    config, batch, tokens, calls = plan.config, plan.config.batch, plan.tokens, plan.calls
    share = config.parallel.sequence
    data_ranks = plan.ranks // share
    videos = global_batch(batch, data_ranks)
    yield "ranks", _ranks(plan)
    yield (
        "batch",
        f"{_samples(config, videos)}{', as batch.total says' if batch.total else ''}:"
        f" batch.micro={batch.micro} x batch.accumulation={batch.accumulation} x {data_ranks}"
        " data parallel",
    )
    yield (
        "one iteration",
        f"{calls.forwards:g} forwards and {calls.backwards} backwards of"
        f" {_samples(config, batch.micro)} x {batch.accumulation} micro-batches",
    )
    yield "work", f"{number(plan.flops() / 1e12)} TFLOP a rank and iteration"
    shared = f", {-(-tokens.count // share):,} tokens and {-(-tokens.heads // share)} heads a rank"
    yield (
        "tokens",
        f"{tokens.count:,} per {_kind(config)}, {tokens.blocks} blocks of {tokens.heads} heads and"
        f" width {tokens.width}{shared if share > 1 else ''}",
    )
    if tokens.note:
        yield "", tokens.note
    if plan.swapping:
        size = plan.whole / plan.weights.experts
        yield "experts", f"{plan.swaps:.2g} swaps an iteration, {gib(size)} from host memory each"
    yield "steps", f"{config.steps:,} of {_samples(config, videos)}"
    yield "guard", _guard(plan)
    for name, size in plan.traffic().items():
        if size:
            yield f"sent: {name}", f"{gib(size)} a rank and iteration"


def _guard(plan: Plan) -> str:
    """What the comparison with the teacher costs."""
    guard, calls = plan.config.guard, GuardCalls.of(plan)
    if guard.action == "off":
        return "off (guard.action)"
    every = plan.config.log.sample_every
    when = f"every {every:,} iterations" if every else "after the last iteration"
    cfg = guard.cfg or plan.config.objective.cfg
    return (
        f"{guard.action}; {calls.each} calls of the student {when}"
        f"{f', {calls.share:.2%} of the training' if every else ''}, and {calls.once:,} of the"
        f" teacher once, at guidance {cfg:g}"
    )


def _ranks(plan: Plan) -> str:
    if plan.ranks == 1:
        return "1, without DeepSpeed"
    share = plan.config.parallel.sequence
    sharing = f" x {share} that share a video" if share > 1 else ""
    stage = plan.config.parallel.zero_stage
    return f"{plan.ranks}: {plan.ranks // share} data parallel{sharing}, ZeRO-{stage}"


def _memory(plan: Plan, device_memory: float) -> Iterator[Row]:
    """Memory by purpose and by moment, and what it takes to start."""
    for name, size in plan.memory().items():
        yield f"memory: {name}", gib(size)
    for moment, size in plan.moments().items():
        yield f"while {moment}", gib(size)
    peak = f"{gib(plan.total())} on the first rank, {plan.narrowest}"
    yield "at its peak", peak + (f", of {device_memory:g} GiB" if device_memory else "")
    yield (
        "checkpointing",
        f"activations, with what works on them: {gib(plan.alive(False)[0])} without,"
        f" {gib(plan.alive(True)[0])} with",
    )
    if plan.ranks == 1 and (setting := _launched(plan.config)):
        yield "start with", f"a launcher, for {setting}: torchrun -m tdmvid train ..."


def _launched(config: RunConfig) -> str:
    """The setting that only a launcher's processes have; empty if there is none."""
    parallel = config.parallel
    if parallel.offload != "none":
        return f"parallel.offload={parallel.offload!r}"
    return "parallel.backend='deepspeed'" if parallel.backend == "deepspeed" else ""


def _kind(config: RunConfig) -> str:
    return "image" if config.video.frames == 1 else "video"


def _samples(config: RunConfig, number: int) -> str:
    return f"{number:,} {_kind(config)}{'' if number == 1 else 's'}"
