"""Describe a plan as text, one row per quantity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..backbones.registry import families
from ..config import RunConfig, global_batch
from ..data.repetition import prompt_uses
from ..guard.limits import Prompts, check_settings
from .calls import needs_launcher
from .guard import GuardCalls
from .host import host_moments, other_ranks
from .plan import Plan
from .price import Row, Terms, price_rows
from .units import gib, number

LABELS = {
    "frozen weights": "frozen base weights",
    "gathered weights": "gathered weights (ZeRO-3)",
    "trained weights, float32": "trainable weights (float32)",
    "optimiser": "optimizer state",
    "average": "EMA weights",
}
"""Printed names of the parts of `Plan.memory`, where they differ from its keys."""


def describe(
    plan: Plan, *, device_memory: float = 0.0, evaluation: str = "", terms: Terms | None = None
) -> str:
    """Return a plan as text.

    Args:
        plan: Plan to describe.
        device_memory: Memory of each device in GiB; 0 if unknown.
        evaluation: How the finished run is scored; "" if it is not.
        terms: Device, node size and measured speed for the cost estimate; default `Terms()`.

    Returns:
        Lines of a label and a value. A line without a label continues the line above.
    """
    rows = [
        *_teacher(plan),
        *_networks(plan),
        *_iteration(plan),
        *_memory(plan, device_memory),
        *([("evaluation", evaluation)] if evaluation else []),
        ("output folder", str(plan.config.folder)),
        *price_rows(plan, terms or Terms()),
    ]
    pad = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{pad}}  {value}" for name, value in rows)


def _teacher(plan: Plan) -> Iterator[Row]:
    """Yield the teacher, its LoRAs and its quantization."""
    model, weights = plan.config.model, plan.weights
    yield (
        "teacher",
        f"{model.path} ({plan.pipeline_class}), {weights.base:,} parameters in {model.dtype}"
        + (f" in {weights.experts} experts together" if weights.experts > 1 else ""),
    )
    if model.adapters:
        named = [
            f"{path} at scale {scale:g}"
            for one in model.adapters
            for path, scale in ((one.path, one.scale), (one.path_2, one.second_scale))
            if path
        ]
        yield "LoRAs on the teacher", ", ".join(named)
    if model.quantize != "none":
        yield (
            "frozen base",
            f"{gib(plan.whole)} without quantization, {gib(weights.base_bytes)} with"
            f" {model.quantize} (linear layers of the blocks)",
        )


def _networks(plan: Plan) -> Iterator[Row]:
    """Yield the trained roles and the student's settings."""
    config, weights = plan.config, plan.weights
    trained = weights.generators
    yield (
        "training",
        f"{config.training}: {' and '.join(trained)}, {weights.trainable:,} trainable parameters"
        + " each" * (len(trained) > 1),
    )
    if plan.calls.discriminator:
        yield (
            "discriminator",
            f"frozen first half of the network; heads with {weights.heads:,} trainable parameters",
        )
    bases = 1 if config.parallel.share_base else len(trained)
    adapters = f"{bases} frozen base + {len(trained)} adapter" + "s" * (len(trained) > 1)
    whole = f"{1 + len(trained)} full networks"
    yield "networks in memory", adapters if config.trains_lora else whole
    if config.init:
        there = Path(config.init).is_dir()
        yield "student starts from", config.init + ("" if there else " (does not exist yet)")
    read = families()[plan.pipeline_class].embedded_guidance
    stated = config.model.guidance
    yield "teacher guidance", _guidance(config, read if stated is None else stated)
    others = [str(k) for k in config.objective.step_set if k != config.grid.calls]
    also = f", also in {', '.join(others)} steps" if others else ""
    yield "student", f"{config.grid.calls} steps, {config.grid.kind} grid{also}"
    yield from _prompts(plan)


def _guidance(config: RunConfig, read: float | None) -> str:
    """Return the guidance of the teacher. `read` is the scale that its network reads, if any."""
    cfg, negative = config.objective.cfg, config.prompts.negative
    embedded = "" if read is None else f"scale {read:g}, read by the network"
    if not config.objective.guided:
        return embedded or "none"
    cut = negative if len(negative) <= 40 else f"{negative[:37]}..."
    second = config.objective.cfg_2
    pair = f"scale {cfg:g}" + ("" if second is None else f" and {second:g}, one per expert")
    also = f"; in addition to {embedded}" * bool(embedded)
    return (
        f"{pair}{_schedule(config)}; negative prompt: "
        + (f"prompts.negative={cut!r}" if cut else "empty")
        + also
    )


def _schedule(config: RunConfig) -> str:
    """Return how the guidance scale depends on time; "" if it is constant."""
    objective = config.objective
    low, high = objective.cfg_interval
    dynamic = f", dynamic over {config.log.teacher_steps} steps" * objective.use_dynamic_cfg
    limited = f", only for t from {low:g} to {high:g}" * ((low, high) != (0, 1))
    return dynamic + limited


def _prompts(plan: Plan) -> Iterator[Row]:
    """Yield the number of prompts, how often each is used, and what the guard finds in settings."""
    ranks = plan.ranks // plan.config.parallel.sequence
    uses = prompt_uses(plan.config, prompts=plan.prompts, ranks=ranks)
    yield "prompts", f"{plan.prompts:,}, each used {number(uses)} times on average"
    for finding in check_settings(plan.config, Prompts(plan.prompts, ranks)):
        yield "", f"warning: {finding}"


def _iteration(plan: Plan) -> Iterator[Row]:
    """Yield the ranks, and the work and communication of each in one iteration."""
    config, batch, tokens, calls = plan.config, plan.config.batch, plan.tokens, plan.calls
    share = config.parallel.sequence
    data_ranks = plan.ranks // share
    videos = global_batch(batch, data_ranks)
    yield "ranks", _ranks(plan)
    yield (
        "batch",
        f"{_samples(config, videos)}{' (set by batch.total)' if batch.total else ''}:"
        f" batch.micro={batch.micro} x batch.accumulation={batch.accumulation} x {data_ranks}"
        " data parallel",
    )
    yield (
        "one iteration",
        f"{calls.forwards:g} forward and {calls.backwards} backward passes of"
        f" {_samples(config, batch.micro)} x {batch.accumulation} micro-batches",
    )
    if work := plan.rewards:
        yield (
            "rewards",
            f"{number(work.samples)} scored and {number(work.decoded)} decoded per rank and"
            f" iteration ({number(work.flops / 1e12)} TFLOP); the reward functions are not counted",
        )
    yield "compute", f"{number(plan.flops() / 1e12)} TFLOP per rank and iteration"
    shared = (
        f"; {-(-tokens.count // share):,} tokens and {-(-tokens.heads // share)} heads per rank"
    )
    yield (
        "tokens",
        f"{tokens.count:,} per {_kind(config)}; {tokens.blocks} blocks, {tokens.heads} heads,"
        f" width {tokens.width}{shared if share > 1 else ''}",
    )
    if tokens.note:
        yield "", tokens.note
    if plan.swapping:
        size = plan.whole / plan.weights.experts
        yield (
            "experts",
            f"{plan.swaps:.2g} swaps per iteration, each moves {gib(size)} from the CPU",
        )
    yield "steps", f"{config.steps:,} iterations of {_samples(config, videos)}"
    yield "guard", _guard(plan)
    for name, size in plan.traffic().items():
        if size:
            yield f"communication: {name}", f"{gib(size)} sent per rank and iteration"


def _guard(plan: Plan) -> str:
    """Return the action of the guard and the cost of comparing the student with the teacher."""
    guard, calls = plan.config.guard, GuardCalls.of(plan)
    if guard.action == "off":
        return "off (guard.action)"
    every = plan.config.log.sample_every
    when = f"every {every:,} iterations" if every else "after the last iteration"
    cfg = guard.cfg or plan.config.objective.cfg
    return (
        f"{guard.action}; {calls.each} student calls {when}"
        f"{f' ({calls.share:.2%} of the training compute)' if every else ''} and {calls.once:,}"
        f" calls once, for its reference at guidance scale {cfg:g}"
    )


def _ranks(plan: Plan) -> str:
    if plan.ranks == 1:
        stage = plan.config.parallel.zero_stage
        return f"1, with DeepSpeed, ZeRO-{stage}" if plan.by_deepspeed else "1, without DeepSpeed"
    share = plan.config.parallel.sequence
    sharing = f" x {share} sequence parallel" if share > 1 else ""
    stage = plan.config.parallel.zero_stage
    return f"{plan.ranks}: {plan.ranks // share} data parallel{sharing}, ZeRO-{stage}"


def _memory(plan: Plan, device_memory: float) -> Iterator[Row]:
    """Yield the memory by purpose and by phase of the run, and how to launch the run."""
    for name, size in plan.memory().items():
        yield f"memory: {LABELS.get(name, name)}", gib(size)
    for moment, size in plan.moments().items():
        yield f"peak while {moment}", gib(size)
    peak = f"{gib(plan.total())} (estimated) on the first rank, while {plan.narrowest}"
    yield "peak memory", peak + (f", of {device_memory:g} GiB" if device_memory else "")
    host = host_moments(plan)
    phase, size = max(host.items(), key=lambda moment: moment[1])
    rest = f", and {gib(other_ranks(plan))} on each other rank" if plan.ranks > 1 else ""
    yield (
        "host memory",
        f"{gib(size)} (estimated) on the first rank, while {phase}{rest}; Python and libraries not"
        " included",
    )
    yield (
        "gradient checkpointing",
        f"activations and working memory: {gib(plan.alive(False)[0])} without,"
        f" {gib(plan.alive(True)[0])} with",
    )
    if plan.ranks == 1 and (setting := needs_launcher(plan.config)):
        yield "launch with", f"torchrun -m tdmvid train ... ({setting} needs a launcher)"


def _kind(config: RunConfig) -> str:
    return "image" if config.video.frames == 1 else "video"


def _samples(config: RunConfig, number: int) -> str:
    return f"{number:,} {_kind(config)}{'' if number == 1 else 's'}"
