"""What a run would do, in numbers: networks, calls, work, traffic and memory of a rank.

Needs the teacher's config files only: no weights, no GPU, no other rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..backbones.base import Backbone
from ..backbones.dtype import torch_dtype
from ..backbones.registry import find_family
from ..backbones.spec import Tokens
from ..config import RunConfig, share_batch
from ..data.items import MANIFEST, read_run_items
from ..data.prompts import read_training_prompts
from ..distill.grids import build_grids, reference_grid
from ..distill.trajectories import count_swaps
from ..parallel.launch import check_sequence
from ..roles.rules import check_settings, check_teacher
from .cost import Trace
from .counts import (
    Calls,
    Pipeline,
    Weights,
    bytes_per_value,
    calls_per_iteration,
    count_calls,
    count_pipeline,
    decoded_settings,
    graded_twice,
    outline_networks,
    teacher_calls,
    traced_settings,
    weighed_settings,
)

LIVE_VALUES = 1e9
"""Gathered weights that ZeRO-3 lets live at a time (DeepSpeed's stage3_max_live_parameters)."""
OPTIMISER_BYTES = 7 * 4
"""Read and written for each trained number by AdamW: itself, two moments, and its gradient."""
PASSING = ("activations", "working memory", "gradients")
"""What is there within an iteration only."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on `ranks` ranks, counted. Bytes and floating-point operations are of one rank."""

    config: RunConfig
    """With the accumulation that follows from the number of ranks."""
    ranks: int
    folder: Path
    """Of the teacher, or of its configs."""
    pipeline_class: str
    prompts: int
    tokens: Tokens
    weights: Weights
    calls: Calls
    pipeline: Pipeline
    swaps: float = 0.0
    """How often an iteration brings the other expert's weights to the device, on average."""
    launched: bool = False
    """Whether a launcher starts even one rank, so that DeepSpeed runs it."""

    @property
    def checkpointing(self) -> bool:
        return self.config.parallel.gradient_checkpointing

    @property
    def graphs(self) -> int:
        """Graphs alive at once: the student's kept call beside the fake's, or one where the call is
        made twice instead.
        """
        objective = self.config.objective
        if objective.through_scores:  # the student's, the fake's and the teacher's
            return 2 + teacher_calls(self.config)
        fake = "fake" in objective.roles
        return 2 if fake and not graded_twice(self.config) else 1

    @property
    def whole(self) -> int:
        """Bytes of a base as users have it."""
        return self.weights.base * bytes_per_value(torch_dtype(self.config.model))

    def activations(self, checkpointing: bool) -> int:
        """Return the bytes that all graphs alive at once keep."""
        network, critic = self.calls.network, self.calls.discriminator
        graph = self._graph(network, checkpointing)
        others = (self.graphs - 1) * graph  # the fake's
        if critic:
            others = max(others, self._graph(critic, checkpointing))
        return graph + others

    def _graph(self, call: Trace, checkpointing: bool) -> int:
        """Bytes that the graph of one call keeps."""
        return call.footprint(checkpointing).kept + self._attention(call, checkpointing)

    def _attention(self, call: Trace, checkpointing: bool) -> int:
        """Bytes that are kept beside the inputs of blocks."""
        return call.attention_bytes * (checkpointing and self.config.parallel.keep_attention)

    def alive(self, checkpointing: bool) -> tuple[float, float]:
        """Return the most bytes alive in a turn of an iteration, with the graphs of other calls: of
        activations and what a backward pass works with, and of gradients at that time.

        A first micro-batch has its gradients at the end of its backward pass, when its activations
        are gone.
        """
        network, critic = self.calls.network, self.calls.discriminator
        graph, attention = (f(network, checkpointing) for f in (self._graph, self._attention))
        others = (self.graphs - 1) * graph
        teacher = teacher_calls(self.config) * network.ungraded
        early = max(others + network.footprint(checkpointing).early + attention, graph + teacher)
        if critic:
            kept = self._attention(critic, checkpointing)
            early = max(early, graph + critic.footprint(checkpointing).peak + kept)
        late, gradients = others + network.footprint(checkpointing).end, self._gradients
        if self._accumulates:
            return max(early, late), gradients
        return max((early, 0.0), (late, gradients), key=sum)

    @property
    def _accumulates(self) -> bool:
        """Whether a backward pass meets gradients of another."""
        batch, objective = self.config.batch, self.config.objective
        return self._sharded or batch.accumulation > 1 or objective.updates == "joint"

    @property
    def _gradients(self) -> float:
        """Bytes of all gradients at once: those of one role, which are dropped behind its step."""
        together = self._sharded or self.config.objective.updates == "joint"
        values = max(self.weights.trainable, self.weights.heads)
        at_once = self.weights.trained if together else values
        return 4 * at_once / self.weights.experts / self._shards(2)

    def memory(self) -> dict[str, float]:
        """Return estimated bytes on one rank's device at the peak of an iteration, by purpose."""
        parallel, lora = self.config.parallel, self.config.trains_lora
        bases = 1 if parallel.share_base or not lora else len(self.weights.generators)
        frozen = bases * self.weights.base_bytes / self._shards(3)
        if self.swapping:
            frozen /= self.weights.experts
        trained = self.weights.trained * 4
        offloaded = parallel.offload == "all"
        gathered = min(self.weights.called, LIVE_VALUES) * bytes_per_value(
            torch_dtype(self.config.model)
        )
        alive, gradients = self.alive(self.checkpointing)
        activations = min(self.activations(self.checkpointing), alive)
        parts = {
            "frozen weights": 0.0 if offloaded and lora else frozen,  # or the whole teacher
            "buffers": float(bases * self.weights.buffers),
            "gathered weights": gathered if self._zero_stage == 3 else 0.0,
            "trained weights, float32": 0.0 if offloaded else trained / self._shards(3),
            "gradients": gradients,
            "optimiser": 0.0 if parallel.offload != "none" else 2 * trained / self._shards(1),
            "average": self.weights.trainable * 4 / self._shards(3) if self.config.ema else 0.0,
            "autoencoder": float(self.pipeline.vae),
            "activations": float(activations),
            "working memory": alive - activations,
        }
        return {name: value for name, value in parts.items() if value}

    @property
    def swapping(self) -> bool:
        """Whether the expert that is not called waits in host memory."""
        return self.config.model.idle_expert == "host"

    @property
    def _zero_stage(self) -> int:
        return self.config.parallel.zero_stage if self._sharded else 0

    @property
    def _sharded(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.ranks > 1 or self.launched

    def _shards(self, stage: int) -> int:
        """Ranks over which ZeRO spreads what it shards from `stage` on."""
        return self.ranks if self._zero_stage >= stage else 1

    def pictures(self, calls: int) -> float:
        """Return the bytes while all samples are made, in so many calls' room, or one of them is
        decoded, whichever is more.
        """
        log, batch = self.config.log, self.config.batch
        samples = len(log.sample_prompts) or min(log.sample_count, self.prompts)
        made = calls * self.calls.network.ungraded * samples / batch.micro
        return max(self.pipeline.decoding, made)

    def moments(self) -> dict[str, float]:
        """Return estimated bytes at a run's peaks, in its order, on the first rank's device, which
        needs most; the library's workspace is left out.
        """
        memory = self.memory()
        passing = math.fsum(memory.get(name, 0.0) for name in PASSING)
        training = math.fsum(memory.values())
        resting = training - passing - memory.get("gathered weights", 0.0)
        sharded = self.ranks > 1 and self.config.parallel.zero_stage == 3
        parked = 0.0 if sharded else memory.get("frozen weights", 0.0)  # in host memory
        # In float32: of each role as it is made, of the student as it is written.
        copies = self.weights.base * 4 if not self.config.trains_lora else 0
        whole = self.whole / (1 + self.swapping)
        checked = whole + copies + self.pictures(self.config.parallel.sequence)
        return {
            "loading the base": float(whole + copies),
            "embedding the prompts": float(self.pipeline.text),  # the base is in host memory
            "training": training,
            "making samples": training - passing + self.pictures(teacher_calls(self.config)),
            "checking the export": resting - parked + checked,  # one rank alone
        }

    def total(self) -> float:
        """Return the estimated peak bytes on the first rank's device."""
        return max(self.moments().values())

    @property
    def narrowest(self) -> str:
        """The moment of the peak."""
        return max(self.moments().items(), key=lambda moment: moment[1])[0]

    def flops(self) -> float:
        """Return the operations of one iteration on one rank, recomputed forwards included."""
        kept = self.config.parallel.keep_attention
        return self._per_iteration(
            lambda call: call.forward_flops,
            lambda call: call.backward_flops,
            lambda call: call.forward_flops - kept * call.attention_flops,
        )

    def moved(self) -> float:
        """Return the bytes that all kernels but matrix products and attention read and write in one
        iteration on one rank: in calls, to make rounded weights whole, and in the optimiser.
        """
        calls = self._per_iteration(
            lambda call: call.forward_moved,
            lambda call: call.backward_moved,
            lambda call: call.forward_moved,
        )
        rounded = self.config.model.quantize != "none"
        uses = self.base_uses + self.checkpointing * self.calls.backwards
        experts, micros = self.weights.experts, self.config.batch.accumulation
        whole = rounded * uses * micros * (self.weights.base + self.whole) / experts
        return calls + whole + OPTIMISER_BYTES * self.weights.trained / experts / self._shards(1)

    def kernels(self) -> float:
        """Return the kernels that one rank starts in one iteration's calls."""
        return self._per_iteration(
            lambda call: call.forward_kernels,
            lambda call: call.backward_kernels,
            lambda call: call.forward_kernels,
        )

    def _per_iteration(
        self,
        forward: Callable[[Trace], float],
        backward: Callable[[Trace], float],
        again: Callable[[Trace], float],
    ) -> float:
        """Sum up over an iteration what a forward, a backward, and with checkpointing the forward
        that is computed again take.
        """
        calls, critic = self.calls, self.calls.discriminator

        def both_ways(call: Trace) -> float:
            return backward(call) + (again(call) if self.checkpointing else 0.0)

        total = calls.forwards * forward(calls.network) + calls.backwards * both_ways(calls.network)
        if critic:
            # Its own turn compares two batches, without a gradient but in its heads; the student's
            # goes through it.
            total += 3 * forward(critic) + both_ways(critic)
        return total * self.config.batch.accumulation

    @property
    def base_uses(self) -> float:
        """How often a micro-batch needs the whole base: once a call, of any batch, and once a
        backward; what a block is computed again with stays for its backward.
        """
        return self.calls.forwards - (teacher_calls(self.config) - 1) + self.calls.backwards

    def traffic(self) -> dict[str, float]:
        """Return the bytes that one rank sends in one iteration, by purpose.

        In a ring, adding up costs every byte once and spreading the sum once more. ZeRO-3 adds up
        only; 1 and 2 do both, and then spread what their shares of the optimiser made of the
        weights.
        """
        if self.ranks == 1:
            return {}
        calls, stage = self.calls, self.config.parallel.zero_stage
        away, micros = (self.ranks - 1) / self.ranks, self.config.batch.accumulation
        forwards = calls.forwards + (2 if self.checkpointing else 1) * calls.backwards
        experts = self.weights.experts
        trained = self.weights.trained * 4 * away / experts
        called = self.whole / experts
        return {
            "weights": self.base_uses * micros * called * away if stage == 3 else 0.0,
            "gradients": trained if stage == 3 else 2 * trained,
            "updated weights": trained if stage in (1, 2) else 0.0,
            "tokens": micros * calls.network.exchanged * forwards,
        }


def make_plan(
    config: RunConfig, *, ranks: int = 1, like: Plan | None = None, launched: bool = False
) -> Plan:
    """Plan a run on `ranks` ranks.

    Args:
        config: the run.
        ranks: the number of ranks.
        like: a plan of a similar run; what costs the same in both is not traced again.
        launched: whether a launcher starts the run, though it be one rank.

    Raises:
        ValueError: the run itself would refuse its settings.
    """
    check_sequence(config.parallel.sequence, ranks)
    config = share_batch(config, ranks // config.parallel.sequence)
    folder, family = find_family(config.model, weights=False)
    check_settings(config, distributed=ranks > 1 or config.parallel.offload != "none")
    swaps = _check_grids(config, folder, family)
    prompts = _count_prompts(config, takes_images=family.takes_images)
    tokens, weights, calls, pipeline = _counted(config, folder, family, like)
    return Plan(
        config=config,
        ranks=ranks,
        folder=folder,
        pipeline_class=family.pipeline_class,
        prompts=prompts,
        tokens=tokens,
        weights=weights,
        calls=calls,
        pipeline=pipeline,
        swaps=swaps,
        launched=launched,
    )


def _count_prompts(config: RunConfig, *, takes_images: bool) -> int:
    """Return how many prompts the run has; images that are yet to be made of them are not missed.

    Raises:
        ValueError: a prompt has no image, of a model that takes one.
    """
    images = config.prompts.images
    if images and not (Path(images) / MANIFEST).is_file():
        return len(read_training_prompts(config.prompts))
    return len(read_run_items(config, takes_images=takes_images)[0])


def _counted(
    config: RunConfig, folder: Path, family: type[Backbone], like: Plan | None
) -> tuple[Tokens, Weights, Calls, Pipeline]:
    """Count the networks, as far as a similar run has not."""

    def same(settings: Callable[[RunConfig], object]) -> Plan | None:
        return like if like and settings(like.config) == settings(config) else None

    weighed, traced, decoded = map(same, (weighed_settings, traced_settings, decoded_settings))
    if weighed and traced and decoded:
        return weighed.tokens, weighed.weights, _called(traced.calls, config), decoded.pipeline
    networks = outline_networks(config, folder, family)
    calls = _called(traced.calls, config) if traced else count_calls(networks)
    pipeline = decoded.pipeline if decoded else count_pipeline(networks)
    return networks.tokens, networks.weights, calls, pipeline


def _called(calls: Calls, config: RunConfig) -> Calls:
    """The same calls, as often as a run makes them."""
    forwards, backwards = calls_per_iteration(config)
    return replace(calls, forwards=forwards, backwards=backwards)


def _check_grids(config: RunConfig, folder: Path, family: type[Backbone]) -> float:
    """Return how often an iteration changes the expert on the device.

    Raises:
        ValueError: the teacher's process has not the times of the student, or of the teacher's long
            samples.
    """
    process, split = family.spec.read_process(folder), family.spec.read_split(folder)
    boundary = check_teacher(config, split)
    grid, *_ = build_grids(config.grid, process, config.objective.step_set, boundary)
    reference_grid(config, process)
    if config.model.idle_expert == "device":
        return 0.0
    return count_swaps(grid, config.objective, config.batch.accumulation)
