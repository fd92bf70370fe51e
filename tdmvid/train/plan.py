"""What a run would do, without doing it: networks, network calls, tokens, memory."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..adapters.lora import attach
from ..backbones.base import find_family
from ..config import RunConfig


def calls_per_iteration(config: RunConfig) -> tuple[float, int]:
    """Mean forwards and the backwards of one iteration, in whole-batch network calls per micro-batch.

    Rollout + the graded call + per fake update (1F1B) + the student's turn (teacher once or
    twice, fake once, 1B); with accumulation the graded call is made twice.
    """
    objective, steps = config.objective, _student_steps(config)
    rollout = steps - 1 if objective.rollout == "full" else (steps - 1) / 2
    graded = 1 if config.batch.accumulation == 1 else 2
    teacher = 1 if objective.cfg == 1 else 2
    return rollout + graded + objective.fake_updates + teacher + 1, objective.fake_updates + 1


def plan(config: RunConfig) -> str:
    """The plan as text; the network is built from its config alone, on no memory."""
    folder, family = find_family(config.model)
    network = family.empty_network(folder).requires_grad_(False)
    base = _count(network)
    if config.training == "lora":
        trainable = _count(attach(network, config.lora, family.lora_targets, seed=0), trainable=True)
    else:
        trainable = base
    tokens, width, layers = family.tokens(network, folder, config.video)
    forwards, backwards = calls_per_iteration(config)
    rows = [
        ("teacher", f"{config.model.path} ({family.pipeline_class}), {base:,} parameters in {config.model.dtype}"),
        ("training", f"{config.training}: student and fake, {trainable:,} trainable parameters each"),
        ("weights held", "1 frozen base + 2 adapters" if config.training == "lora" else "3 whole networks"),
        ("student", f"{_student_steps(config)} steps, {config.grid.kind} grid"),
        ("one iteration", f"{forwards:g} forwards and {backwards} backwards of {config.batch.micro} videos x {config.batch.accumulation} micro-batches"),
        ("tokens", f"{tokens:,} per video, {layers} blocks of width {width}"),
        ("steps", f"{config.steps:,}, {config.steps * config.batch.micro * config.batch.accumulation:,} videos per rank"),
        *[(f"memory: {name}", f"{size / 2**30:,.2f} GiB") for name, size in _memory(config, base, trainable, tokens, width, layers).items()],
        ("writes", str(config.folder)),
    ]
    pad = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{pad}}  {value}" for name, value in rows)


def _student_steps(config: RunConfig) -> int:
    return len(config.grid.timesteps) if config.grid.kind == "explicit" else config.grid.steps


def _count(network: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not trainable)


def _memory(config: RunConfig, base: int, trainable: int, tokens: int, width: int, layers: int) -> dict[str, float]:
    """Estimated bytes on one unsharded device.

    Activations: about 17 values of the compute dtype per token, channel and block are kept
    for the backward pass (arXiv 2205.05198, Eq. 1, 34 bytes at 16 bit, without the attention matrix); with
    gradient checkpointing one per block and 17 for the block being recomputed. Two graphs
    live at once: the student's kept call and the fake's.
    """
    size = torch.finfo(config.model.torch_dtype).bits // 8
    kept = layers + 17 if config.parallel.gradient_checkpointing else 17 * layers
    graph = config.batch.micro * tokens * width * kept * size
    copies = 1 if config.training == "lora" else 3
    parts = {
        "weights": base * size * copies + 2 * trainable * 4 * (config.training == "lora"),
        "gradients and optimiser": 2 * trainable * 4 * 3 + (trainable * 4 if config.ema else 0),
        "activations (estimate)": 2 * graph,
    }
    return parts | {"in all": math.fsum(parts.values())}
