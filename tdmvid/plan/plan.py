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

from ..backbones.base import Backbone
from ..backbones.discriminator import Discriminator
from ..backbones.quantize import planned_bytes
from ..backbones.registry import find_family
from ..backbones.spec import Tokens
from ..config import RunConfig
from ..data.prompts import read_prompts
from ..distill.grids import reference_grid
from ..parallel.launch import check_sequence
from ..parallel.sequence import PlannedGroup
from ..roles.build import fit, outline
from ..roles.rules import check_settings
from .cost import Trace, decoding_bytes, trace

LIVE_VALUES = (
    1e9  # gathered weights that ZeRO-3 lets live at a time (DeepSpeed's stage3_max_live_parameters)
)
GIB = 2**30
OF_MODEL = ("quantize", "tiling")  # remedies that are settings of `model`, the others of `parallel`


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
    text_bytes: int
    """Weights of the text encoders, as far as their configs are known."""
    vae_bytes: int
    """Weights of the autoencoder."""
    decoding: int
    """Peak bytes of tensors while it decodes one sample."""
    critic: Trace | None = None
    """A call of the discriminator, with a gradient in its input."""
    heads: int = 0
    """Trainable parameters of the discriminator."""

    @property
    def checkpointing(self) -> bool:
        return self.config.parallel.gradient_checkpointing

    @property
    def graphs(self) -> int:
        """Graphs alive at once: the student's kept call beside the fake's; with accumulation calls
        are made twice instead.
        """
        objective = self.config.objective
        if objective.through_scores:  # the student's, the fake's and the teacher's
            return 2 + _teacher_calls(self.config)
        return 2 if self.config.batch.accumulation == 1 else 1

    def activations(self, checkpointing: bool) -> int:
        """Bytes of all graphs alive at once.

        With checkpointing one of them computes a block again, whose gradients in flight take half
        as much once more (measured, benchmarks/scaling.py); without, they are little beside the
        rest.
        """
        keep = checkpointing and self.config.parallel.keep_attention
        size = lambda call: (
            call.saved_inputs + keep * call.attention_bytes if checkpointing else call.saved
        )  # noqa: E731
        beside = max(
            (self.graphs - 1) * size(self.call), size(self.critic) if self.critic else 0
        )  # the fake's, or the discriminator's
        block = self.call.saved_block * 3 // 2 if checkpointing else 0
        return size(self.call) + beside + block

    def memory(self) -> dict[str, float]:
        """Estimated bytes on one rank's device in an iteration, by purpose."""
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
            "autoencoder": float(self.vae_bytes),
            "activations": float(self.activations(self.checkpointing)),
        }
        if not lora:
            parts["frozen weights"] = frozen  # the teacher's
        return {name: value for name, value in parts.items() if value}

    @property
    def whole(self) -> int:
        """Bytes of a base as users have it."""
        return self.base * _size(self.config.model.torch_dtype)

    def pictures(self, calls: int) -> float:
        """Bytes while all samples are made, in so many calls' room, or one of them is decoded,
        whichever is more; a call keeps nothing but a block.
        """
        samples = len(self.config.log.sample_prompts) or min(
            self.config.log.sample_count, self.prompts
        )
        return max(self.decoding, calls * self.call.saved_block * samples / self.config.batch.micro)

    def moments(self) -> dict[str, float]:
        """Estimated bytes on the first rank's device, which needs most, without the library's
        workspace: at its peaks, in the order of a run.
        """
        memory, full = self.memory(), self.config.training == "full"
        passing = math.fsum(memory.get(name, 0.0) for name in ("activations", "gradients"))
        training = math.fsum(memory.values())
        resting = training - passing - memory.get("gathered weights", 0.0)
        sharded = self.ranks > 1 and self.config.parallel.zero_stage == 3
        parked = 0.0 if sharded else memory.get("frozen weights", 0.0)  # in host memory
        copies = (
            self.base * 4 if full else 0
        )  # in float32: of each role as it is made, of the student as it is written
        return {
            "loading the base": float(self.whole + copies),
            "embedding the prompts": float(self.text_bytes),  # the base is in host memory
            "training": training,
            "making samples": training - passing + self.pictures(_teacher_calls(self.config)),
            "checking the export": (
                resting
                - parked
                + self.whole
                + copies
                + self.pictures(self.config.parallel.sequence)
            ),  # one rank alone
        }

    def total(self) -> float:
        """Estimated peak bytes on the first rank's device."""
        return max(self.moments().values())

    @property
    def narrowest(self) -> str:
        """The moment of the peak."""
        return max(self.moments().items(), key=lambda moment: moment[1])[0]

    def flops(self) -> float:
        """Of one iteration on one rank; recomputed forwards are counted."""
        kept = self.config.parallel.keep_attention
        again = lambda call: (
            call.forward_flops - kept * call.attention_flops if self.checkpointing else 0.0
        )  # noqa: E731
        per_micro = self.forwards * self.call.forward_flops + self.backwards * (
            self.call.backward_flops + again(self.call)
        )
        # its own turn compares two batches, without a gradient but in its heads; the student's goes
        # through it
        if self.critic:
            per_micro += (
                3 * self.critic.forward_flops + self.critic.backward_flops + again(self.critic)
            )
        return per_micro * self.config.batch.accumulation

    def traffic(self) -> dict[str, float]:
        """Bytes that one rank sends in one iteration, by purpose.

        In a ring, adding up costs every byte once and spreading the sum once more. ZeRO-3 adds up
        only; 1 and 2 do both, and then spread what their shares of the optimiser made of the
        weights. ZeRO-3 gathers the base once a call, of any batch, and once a backward: what a
        block is computed again with stays for its backward.
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
    check_settings(config, distributed=ranks > 1 or config.parallel.offload != "none")
    process = family.spec.read_process(folder)
    config.grid.family(process, config.objective.step_set)
    reference_grid(config, process)
    if not config.prompts.path:
        raise ValueError(
            "prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file of prompts"
        )
    prompts = len(read_prompts(Path(config.prompts.path), column=config.prompts.column))
    network = outline(config, folder, family)
    tokens = family.spec.tokens(network, folder, config.video)
    base, base_bytes = (
        _count(network),
        planned_bytes(network, family.spec.blocks(network), config.model.quantize),
    )
    group, there = (
        PlannedGroup(config.parallel.sequence),
        Path(config.init).is_dir(),
    )  # a stage that is not finished yet can be planned on
    fit(network, config if there else replace(config, init=""), family, group)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    example = lambda: family.spec.example(
        network, folder, config.video, config.batch.micro, config.model.torch_dtype
    )  # noqa: E731
    call = trace(network, family.spec.blocks(network), example, dtype=config.model.torch_dtype)
    forwards, backwards = calls_per_iteration(config)
    vae_bytes, decoding = _autoencoder(config, folder, family, network)
    critic, heads = (
        _discriminator(config, folder, family)
        if "discriminator" in config.objective.roles
        else (None, 0)
    )
    return Plan(
        config,
        ranks,
        family.pipeline_class,
        min(prompts, config.prompts.limit or prompts),
        base,
        base_bytes,
        trainable,
        tokens,
        forwards,
        backwards,
        call,
        group.sent,
        family.spec.text_bytes(folder, config.model),
        vae_bytes,
        decoding,
        critic,
        heads,
    )


def _autoencoder(
    config: RunConfig, folder: Path, family: type[Backbone], network: nn.Module
) -> tuple[int, int]:
    """Bytes of its weights, and of what it makes while it decodes one sample; tiles stay until they
    are joined, then there are two such pictures.
    """
    with torch.device("meta"):
        vae, shape = family.spec.empty_vae(network, folder, config.model, config.video)
    size, dtype = config.video, next(vae.parameters()).dtype
    weights = _count(vae) * _size(dtype)
    joined = (
        3 * 3 * size.frames * size.height * size.width * _size(dtype) if config.model.tiling else 0
    )
    return weights, decoding_bytes(vae, shape) + joined


def _discriminator(config: RunConfig, folder: Path, family: type[Backbone]) -> tuple[Trace, int]:
    """A call of the discriminator, and how many parameters it trains."""
    dtype, batch, network = (
        config.model.torch_dtype,
        config.batch.micro,
        outline(config, folder, family),
    )
    with torch.device("meta"):
        critic = Discriminator(network, family.halve(network), seed=0)

    def example() -> dict:
        inputs = family.spec.example(network, folder, config.video, batch, dtype)
        sample = next(iter(inputs))  # the noisy latents come first
        return inputs | {
            sample: inputs[sample].requires_grad_(),
            "tau": torch.rand(batch),
            "steps": None,
        }

    heads = sum(p.numel() for p in critic.heads.parameters())
    return trace(critic, family.spec.blocks(network), example, dtype=dtype), heads


def calls_per_iteration(config: RunConfig) -> tuple[float, int]:
    """Mean forwards and the backwards of one iteration, in whole-batch network calls per
    micro-batch.

    Rollout + the graded call + per fake update (1F1B) + the student's turn (teacher once or
    twice, fake once unless the draw is shared, 1B); with accumulation the graded call is made
    twice. A gradient that is taken through the scores adds their backwards.
    """
    objective = config.objective
    steps = (
        sum(objective.step_set) / len(objective.step_set)
        if objective.step_set
        else _student_steps(config)
    )
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
    start = (
        [
            (
                "student starts from",
                config.init + ("" if Path(config.init).is_dir() else " (not there yet)"),
            )
        ]
        if config.init
        else []
    )
    videos = config.batch.micro * config.batch.accumulation * plan.ranks // config.parallel.sequence
    rounded = config.model.quantize != "none"
    ranks, share = plan.ranks // config.parallel.sequence, config.parallel.sequence
    spread = (
        f"{plan.ranks}: {ranks} data parallel"
        + (f" x {share} that share a video" if share > 1 else "")
        + f", ZeRO-{config.parallel.zero_stage}"
    )
    count = lambda number: f"{number:,} {kind if number != 1 else kind[:-1]}"  # noqa: E731
    shared = (
        f", {-(-tokens.count // config.parallel.sequence):,} tokens and"
        f" {-(-tokens.heads // config.parallel.sequence)} heads a rank"
    )
    rows = [
        (
            "teacher",
            (
                f"{config.model.path} ({plan.pipeline_class}), {plan.base:,} parameters in"
                f" {config.model.dtype}"
            ),
        ),
        *(
            [
                (
                    "frozen base",
                    (
                        f"linear layers of the blocks in {config.model.quantize}:"
                        f" {_gib(plan.base_bytes)} for {_gib(plan.whole)}"
                    ),
                )
            ]
            if rounded
            else []
        ),
        (
            "training",
            f"{config.training}: student and fake, {plan.trainable:,} trainable parameters each",
        ),
        *(
            [("discriminator", f"half of the network, frozen; {plan.heads:,} trainable parameters")]
            if plan.critic
            else []
        ),
        (
            "weights held",
            (
                f"{1 if config.parallel.share_base else 2} frozen base + 2 adapters"
                if config.training == "lora"
                else "3 whole networks"
            ),
        ),
        *start,
        ("student", f"{_student_steps(config)} steps, {config.grid.kind} grid"),
        ("prompts", f"{plan.prompts:,}"),
        ("ranks", spread if plan.ranks > 1 else "1, without DeepSpeed"),
        (
            "one iteration",
            (
                f"{plan.forwards:g} forwards and {plan.backwards} backwards of"
                f" {count(config.batch.micro)} x {config.batch.accumulation} micro-batches"
            ),
        ),
        ("work", f"{_number(plan.flops() / 1e12)} TFLOP a rank and iteration"),
        (
            "tokens",
            (
                f"{tokens.count:,} per {kind[:-1]}, {tokens.blocks} blocks of {tokens.heads} heads"
                f" and width {tokens.width}{shared if config.parallel.sequence > 1 else ''}"
            ),
        ),
        *([("", tokens.note)] if tokens.note else []),
        ("steps", f"{config.steps:,} of {count(videos)}"),
        *[
            (f"sent: {name}", _gib(size) + " a rank and iteration")
            for name, size in plan.traffic().items()
            if size
        ],
        *[(f"memory: {name}", _gib(size)) for name, size in plan.memory().items()],
        *[(f"while {moment}", _gib(size)) for moment, size in plan.moments().items()],
        (
            "at its peak",
            f"{_gib(plan.total())} on the first rank, {plan.narrowest}"
            + (f", of {device_memory:g} GiB" if device_memory else ""),
        ),
        (
            "checkpointing",
            (
                f"activations {_gib(plan.activations(False))} without,"
                f" {_gib(plan.activations(True))} with"
            ),
        ),
        *(
            [("start with", f"a launcher: deepspeed launch/train.py ..., for {launched}")]
            if (launched := _launched(config)) and plan.ranks == 1
            else []
        ),
        ("writes", str(config.folder)),
    ]
    pad = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{pad}}  {value}" for name, value in rows)


def check_fit(plan: Plan, device_memory: float) -> None:
    """ValueError, with the first remedy that helps, if the first rank needs more than
    `device_memory` GiB.
    """
    fits = lambda plan: plan.total() <= device_memory * GIB  # noqa: E731
    if fits(plan):
        return
    needs = (
        f"this run needs {_gib(plan.total())} on the first rank, {plan.narrowest}, more than"
        f" {device_memory:g} GiB"
    )
    for changes, ranks, better in _remedies(plan):
        if fits(better):
            for key in [
                key for key in changes if len(changes) > 1 and key != "sequence"
            ]:  # what came on the way and is not needed; more ranks are
                rest = {name: value for name, value in changes.items() if name != key}
                try:
                    fewer = make_plan(_changed(plan.config, rest), ranks=ranks)
                except ValueError:
                    continue
                if fits(fewer):
                    changes, better = rest, fewer
            raise ValueError(f"{needs}: {_named(changes, ranks)} needs {_gib(better.total())}")
    smaller = "fewer frames or pixels" + (
        ", or a smaller batch.micro" if plan.config.batch.micro > 1 else ""
    )
    later = (
        "; it would leave its last checkpoint, which launch/export_lora.py exports on a larger"
        " device, or with CUDA_VISIBLE_DEVICES='' on the CPU"
    )
    raise ValueError(
        f"{needs}: use {smaller}"
        + (later if plan.moments()["training"] <= device_memory * GIB else "")
    )


def _remedies(plan: Plan) -> Iterator[tuple[dict, int, Plan]]:
    """What to change so that a rank needs less, each after those before it, on how many ranks, and
    the plan of the run so changed.
    """
    config, ranks, whole = (
        plan.config,
        plan.ranks,
        {"quantize": "none", "compile": False},
    )  # as ZeRO-3's base is
    now, changes = vars(config.parallel) | vars(config.model), {}
    attempts = [
        ({"tiling": True}, ranks),
        ({"keep_attention": False}, ranks),
        ({"gradient_checkpointing": True}, ranks),
    ]
    attempts += (
        [({"quantize": "int8"}, 1)] if ranks == 1 and config.model.quantize == "none" else []
    )
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
        yield changes, ranks, better


def _named(changes: dict, ranks: int) -> str:
    notes = {"sequence": f" on {ranks} ranks", "offload": " (under deepspeed)"}
    part = lambda key: "model" if key in OF_MODEL else "parallel"  # noqa: E731
    return " and ".join(
        f"{part(key)}.{key}={str(value).lower()}{notes.get(key, '')}"
        for key, value in changes.items()
    )


def _changed(config: RunConfig, changes: dict) -> RunConfig:
    """A run with other settings of `parallel` and `model`."""
    model = {key: value for key, value in changes.items() if key in OF_MODEL}
    parallel = {key: value for key, value in changes.items() if key not in OF_MODEL}
    return replace(
        config, model=replace(config.model, **model), parallel=replace(config.parallel, **parallel)
    )


def _teacher_calls(config: RunConfig) -> int:
    return 1 if config.objective.cfg == 1 else 2


def _launched(config: RunConfig) -> str:
    """The setting that only a launcher's processes have; empty if there is none."""
    parallel = config.parallel
    return (
        f"parallel.offload={parallel.offload!r}"
        if parallel.offload != "none"
        else "parallel.backend='deepspeed'"
        if parallel.backend == "deepspeed"
        else ""
    )


def _student_steps(config: RunConfig) -> int:
    return len(config.grid.timesteps) if config.grid.kind == "explicit" else config.grid.steps


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
