"""What a run would do, without doing it: networks, calls, work, traffic, memory per rank.

Needs the teacher's config files only: no weights, no GPU, no other rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..backbones.base import Backbone, Tokens, find_family
from ..backbones.discriminator import Discriminator
from ..backbones.quantize import planned_bytes
from ..config import RunConfig
from ..data.prompts import read_prompts
from ..parallel.launch import check_sequence
from ..parallel.sequence import PlannedGroup
from .setup import check_settings, fit, outline, reference_grid
from .trace import Trace, trace

LIVE_VALUES = 1e9  # gathered weights that ZeRO-3 lets live at a time (DeepSpeed's stage3_max_live_parameters)
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A run on `ranks` ranks, counted. Bytes and floating-point operations are of one rank."""

    config: RunConfig
    ranks: int
    pipeline_class: str
    prompts: int
    base: int
    """Parameters of one network."""
    base_bytes: int
    """What it is held in, frozen."""
    trainable: int
    """Trainable parameters of each role."""
    tokens: Tokens
    forwards: float
    backwards: int
    """Network calls of one micro-batch of an iteration."""
    call: Trace
    exchanged: int
    """Bytes that a rank sends inside one forward to those that share its video."""
    critic: Trace | None = None
    """A call of the discriminator, with a gradient in its input."""
    heads: int = 0
    """Trainable parameters of the discriminator."""

    @property
    def checkpointing(self) -> bool:
        return self.config.parallel.gradient_checkpointing

    @property
    def graphs(self) -> int:
        """Graphs alive at once: the student's kept call beside the fake's; with accumulation calls are made twice instead."""
        objective = self.config.objective
        if objective.through_scores:  # the student's, the fake's and the teacher's
            return 2 + _teacher_calls(self.config)
        return 2 if self.config.batch.accumulation == 1 else 1

    def activations(self, checkpointing: bool) -> int:
        """Bytes of all graphs alive at once.

        With checkpointing one of them computes a block again, whose gradients in flight take half as much once more (measured,
        benchmarks/scaling.py); without, they are little beside the rest.
        """
        keep = self.call.attention_bytes if checkpointing and self.config.parallel.keep_attention else 0
        size = lambda call: call.saved_inputs + keep if checkpointing else call.saved  # noqa: E731
        beside = max((self.graphs - 1) * size(self.call), size(self.critic) if self.critic else 0)  # the fake's, or the discriminator's
        block = self.call.saved_block * 3 // 2 if checkpointing else 0
        return size(self.call) + beside + block

    def memory(self) -> dict[str, float]:
        """Estimated bytes on one rank's device, by purpose."""
        parallel, lora = self.config.parallel, self.config.training == "lora"
        stage = parallel.zero_stage if self.ranks > 1 else 0
        shard = lambda least: self.ranks if stage >= least else 1  # noqa: E731
        size = _size(self.config.model.torch_dtype)
        frozen = self.base_bytes / shard(3) * (1 if parallel.share_base or not lora else 2)
        adapters = (2 * self.trainable + self.heads) * 4
        parts = {
            "frozen weights": 0.0 if parallel.offload == "all" else frozen,
            "gathered weights": min(self.base, LIVE_VALUES) * size if stage == 3 else 0.0,
            "trained weights, float32": 0.0 if parallel.offload == "all" else adapters / shard(3),
            "gradients": adapters / shard(2),
            "optimiser": 0.0 if parallel.offload != "none" else 2 * adapters / shard(1),
            "average": self.trainable * 4 / shard(3) if self.config.ema else 0.0,
            "activations": float(self.activations(self.checkpointing)),
        }
        if not lora:
            parts["frozen weights"] = frozen  # the teacher's
        return {name: value for name, value in parts.items() if value}

    @property
    def loading(self) -> float:
        """Bytes of a base that is whole before it is quantised; 0 if it is not."""
        return 0.0 if self.config.model.quantize == "none" else float(self.base * _size(self.config.model.torch_dtype))

    @property
    def ending(self) -> float:
        """Bytes on the first rank while an export is checked: what stays, and the base once more, whole as users have it."""
        gone = ("activations", "gradients", "gathered weights")
        return math.fsum(size for name, size in self.memory().items() if name not in gone) + self.base * _size(self.config.model.torch_dtype)

    def total(self) -> float:
        """Estimated peak bytes on one rank's device, without the library's workspace."""
        return max(math.fsum(self.memory().values()), self.loading)

    def flops(self) -> float:
        """Of one iteration on one rank; recomputed forwards are counted."""
        again = self.call.forward_flops if self.checkpointing else 0.0
        if self.config.parallel.keep_attention:
            again -= self.call.attention_flops
        per_micro = self.forwards * self.call.forward_flops + self.backwards * (self.call.backward_flops + again)
        if self.critic:  # its own turn compares two batches, without a gradient but in its heads; the student's goes through it
            per_micro += (3 + self.checkpointing) * self.critic.forward_flops + self.critic.backward_flops
        return per_micro * self.config.batch.accumulation

    def traffic(self) -> dict[str, float]:
        """Bytes that one rank sends in one iteration, by purpose.

        In a ring, adding up costs every byte once and spreading the sum once more. ZeRO-3 adds up only; 1 and 2 do both, and
        then spread what their shares of the optimiser made of the weights. ZeRO-3 gathers the base once a call, of any batch, and once
        a backward: what a block is computed again with stays for its backward.
        """
        if self.ranks == 1:
            return {}
        away, micros = (self.ranks - 1) / self.ranks, self.config.batch.accumulation
        gathers = self.forwards - (_teacher_calls(self.config) - 1) + self.backwards
        size = _size(self.config.model.torch_dtype)
        again, stage = 2 if self.checkpointing else 1, self.config.parallel.zero_stage
        trained = (2 * self.trainable + self.heads) * 4 * away
        return {
            "weights": gathers * micros * self.base * size * away if stage == 3 else 0.0,
            "gradients": trained if stage == 3 else 2 * trained,
            "updated weights": trained if stage in (1, 2) else 0.0,
            "tokens": micros * self.exchanged * (self.forwards + again * self.backwards),
        }


def make_plan(config: RunConfig, *, ranks: int = 1) -> Plan:
    """Plan a run on `ranks` ranks; ValueError for whatever the run itself would refuse."""
    check_sequence(config.parallel.sequence, ranks)
    folder, family = find_family(config.model, weights=False)
    check_settings(config, distributed=ranks > 1)
    process = family.read_process(folder)
    config.grid.family(process, config.objective.step_set)
    reference_grid(config, process)
    if not config.prompts.path:
        raise ValueError("prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts")
    prompts = len(read_prompts(Path(config.prompts.path), column=config.prompts.column))
    network = outline(config, folder, family)
    tokens = family.tokens(network, folder, config.video)
    base, base_bytes = _count(network), planned_bytes(network, family.blocks(network), config.model.quantize)
    group, there = PlannedGroup(config.parallel.sequence), Path(config.init).is_dir()  # a stage that is not finished yet can be planned on
    fit(network, config if there else replace(config, init=""), family, group)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    example = lambda: family.example(network, folder, config.video, config.batch.micro, config.model.torch_dtype)  # noqa: E731
    call = trace(network, family.blocks(network), example, dtype=config.model.torch_dtype)
    forwards, backwards = calls_per_iteration(config)
    critic, heads = _discriminator(config, folder, family) if "discriminator" in config.objective.roles else (None, 0)
    return Plan(
        config, ranks, family.pipeline_class, min(prompts, config.prompts.limit or prompts), base, base_bytes, trainable, tokens,
        forwards, backwards, call, group.sent, critic, heads,
    )


def _discriminator(config: RunConfig, folder: Path, family: type[Backbone]) -> tuple[Trace, int]:
    """A call of the discriminator, and how many parameters it trains."""
    dtype, batch, network = config.model.torch_dtype, config.batch.micro, outline(config, folder, family)
    with torch.device("meta"):
        critic = Discriminator(network, family.halve(network), seed=0)

    def example() -> dict:
        inputs = family.example(network, folder, config.video, batch, dtype)
        sample = next(iter(inputs))  # the noisy latents come first
        return inputs | {sample: inputs[sample].requires_grad_(), "tau": torch.rand(batch), "steps": None}

    heads = sum(p.numel() for p in critic.heads.parameters())
    return trace(critic, family.blocks(network), example, dtype=dtype), heads


def calls_per_iteration(config: RunConfig) -> tuple[float, int]:
    """Mean forwards and the backwards of one iteration, in whole-batch network calls per micro-batch.

    Rollout + the graded call + per fake update (1F1B) + the student's turn (teacher once or
    twice, fake once unless the draw is shared, 1B); with accumulation the graded call is made twice.
    A gradient that is taken through the scores adds their backwards.
    """
    objective = config.objective
    steps = sum(objective.step_set) / len(objective.step_set) if objective.step_set else _student_steps(config)
    rollout = steps - 1 if objective.rollout == "full" else (steps - 1) / 2
    graded = 1 if config.batch.accumulation == 1 else 2
    teacher = _teacher_calls(config)
    scores = 1 + teacher if objective.through_scores else 0
    fake = objective.fake_updates + (objective.draws == "own")
    return rollout + graded + fake + teacher, objective.fake_updates + 1 + scores


def describe(plan: Plan, *, device_memory: float = 0.0) -> str:
    """The plan as text; `device_memory` in GiB is what a rank has, 0 if unknown."""
    config, tokens = plan.config, plan.tokens
    kind = "images" if config.video.frames == 1 else "videos"
    start = [("student starts from", config.init + ("" if Path(config.init).is_dir() else " (not there yet)"))] if config.init else []
    videos = config.batch.micro * config.batch.accumulation * plan.ranks // config.parallel.sequence
    shared = f", {-(-tokens.count // config.parallel.sequence):,} tokens and {-(-tokens.heads // config.parallel.sequence)} heads a rank"
    rows = [
        ("teacher", f"{config.model.path} ({plan.pipeline_class}), {plan.base:,} parameters in {config.model.dtype}"),
        *([("frozen base", f"linear layers of the blocks in {config.model.quantize}: {_gib(plan.base_bytes)} for {_gib(plan.loading)}")] if plan.loading else []),
        ("training", f"{config.training}: student and fake, {plan.trainable:,} trainable parameters each"),
        *([("discriminator", f"half of the network, frozen; {plan.heads:,} trainable parameters")] if plan.critic else []),
        ("weights held", f"{1 if config.parallel.share_base else 2} frozen base + 2 adapters" if config.training == "lora" else "3 whole networks"),
        *start,
        ("student", f"{_student_steps(config)} steps, {config.grid.kind} grid"),
        ("prompts", f"{plan.prompts:,}"),
        ("ranks", f"{plan.ranks}: {plan.ranks // config.parallel.sequence} data parallel x {config.parallel.sequence} a video, ZeRO-{config.parallel.zero_stage}"),
        ("one iteration", f"{plan.forwards:g} forwards and {plan.backwards} backwards of {config.batch.micro} {kind} x {config.batch.accumulation} micro-batches"),
        ("work", f"{plan.flops() / 1e12:,.3g} TFLOP a rank and iteration"),
        ("tokens", f"{tokens.count:,} per {kind[:-1]}, {tokens.blocks} blocks of {tokens.heads} heads and width {tokens.width}{shared if config.parallel.sequence > 1 else ''}"),
        *([("", tokens.note)] if tokens.note else []),
        ("steps", f"{config.steps:,} of {videos:,} {kind}"),
        *[(f"sent: {name}", _gib(size) + " a rank and iteration") for name, size in plan.traffic().items() if size],
        *[(f"memory: {name}", _gib(size)) for name, size in plan.memory().items()],
        ("memory: in all", f"{_gib(plan.total())} a rank" + (f" of {device_memory:g} GiB" if device_memory else "")),
        *([("memory: at the start", f"{_gib(plan.loading)}, the base before it is quantised")] if plan.loading else []),
        ("memory: at the end", f"{_gib(plan.ending)} on the first rank, where the export is checked on a base of its own"),
        ("checkpointing", f"activations {_gib(plan.activations(False))} without, {_gib(plan.activations(True))} with"),
        *([("start with", f"a launcher: deepspeed launch/train.py ..., for {launched}")] if (launched := _launched(config)) and plan.ranks == 1 else []),
        ("writes", str(config.folder)),
    ]
    pad = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{pad}}  {value}" for name, value in rows)


def check_fit(plan: Plan, device_memory: float) -> None:
    """ValueError, with the first remedy that helps, if a rank needs more than `device_memory` GiB."""
    if plan.total() <= device_memory * GIB:
        return
    for remedy, better in _remedies(plan):
        if better.total() <= device_memory * GIB:
            raise ValueError(f"this run needs {_gib(plan.total())} a rank, more than {device_memory:g} GiB: {remedy} needs {_gib(better.total())}")
    smaller = "fewer frames or pixels" + (", or a smaller batch.micro" if plan.config.batch.micro > 1 else "")
    raise ValueError(f"this run needs {_gib(plan.total())} a rank, more than {device_memory:g} GiB: use {smaller}")


def _remedies(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """What to change so that a rank needs less, each after those before it, and the plan of the run so changed."""
    config, ranks, whole = plan.config, plan.ranks, {"quantize": "none"}  # DeepSpeed's base is
    now, changes = vars(config.parallel) | {"quantize": config.model.quantize}, {}
    attempts = [({"keep_attention": False}, ranks), ({"gradient_checkpointing": True}, ranks)]
    attempts += [({"quantize": "int8"}, 1)] if ranks == 1 and config.model.quantize == "none" else []
    attempts += [({"zero_stage": 3, **whole}, ranks), ({"offload": "all", **whole}, ranks)]
    attempts += [({"sequence": n, **whole}, max(n, ranks)) for n in (2, 4, 8, 16)]
    for change, ranks in attempts:
        wanted = {key: value for key, value in (changes | change).items() if now[key] != value}
        if wanted == changes:
            continue
        try:
            better = make_plan(_changed(config, wanted), ranks=ranks)
        except ValueError:  # this run cannot have it
            continue
        changes = wanted
        notes = {"sequence": f" on {ranks} ranks", "offload": " (under deepspeed)"}
        names = [f"{'model' if key == 'quantize' else 'parallel'}.{key}={str(value).lower()}{notes.get(key, '')}" for key, value in changes.items()]
        yield " and ".join(names), better


def _changed(config: RunConfig, changes: dict) -> RunConfig:
    """A run with other settings of `parallel`, and of the model's `quantize`."""
    parallel = {key: value for key, value in changes.items() if key != "quantize"}
    model = replace(config.model, quantize=changes.get("quantize", config.model.quantize))
    return replace(config, model=model, parallel=replace(config.parallel, **parallel))


def _teacher_calls(config: RunConfig) -> int:
    return 1 if config.objective.cfg == 1 else 2


def _launched(config: RunConfig) -> str:
    """The setting that only a launcher's processes have; empty if there is none."""
    parallel = config.parallel
    return f"parallel.offload={parallel.offload!r}" if parallel.offload != "none" else "parallel.backend='deepspeed'" if parallel.backend == "deepspeed" else ""


def _student_steps(config: RunConfig) -> int:
    return len(config.grid.timesteps) if config.grid.kind == "explicit" else config.grid.steps


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
