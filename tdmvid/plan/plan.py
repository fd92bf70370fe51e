"""Compute what a run does in numbers: networks, calls, compute, communication and memory of a rank.

Only the teacher's config files are needed: no weights, no GPU and no other rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..backbones.dtype import torch_dtype
from ..backbones.spec import Tokens
from ..config import RunConfig
from .calls import graded_twice, needs_launcher, teacher_calls
from .cost import Trace
from .counts import Calls, Pipeline, Weights, bytes_per_value
from .deepspeed_state import SAVED, SAVED_ALONE, held
from .rewards import RewardWork, count_reward_work

LIVE_VALUES = 1e9
"""Maximum number of gathered weights that ZeRO-3 keeps alive (DeepSpeed's
stage3_max_live_parameters).
"""
OPTIMISER_BYTES = 7 * 4
"""Bytes per trained parameter that AdamW reads (parameter, two moments, gradient) and writes (the
first three), in float32.
"""
PASSING = ("activations", "working memory", "gradients")
"""Parts of memory that exist only during an iteration."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on `ranks` ranks in numbers. Bytes and FLOPs are of one rank."""

    config: RunConfig
    """Settings of the run, with the gradient accumulation that results from the number of ranks."""
    ranks: int
    folder: Path
    """Folder of the teacher, or of its configs."""
    pipeline_class: str
    prompts: int
    tokens: Tokens
    weights: Weights
    calls: Calls
    pipeline: Pipeline
    swaps: float = 0.0
    """Mean number of times per iteration that the other expert's weights are moved to the device.
    """
    launched: bool = False
    """Whether a launcher starts the run even with one rank, so that DeepSpeed is used."""

    @property
    def rewards(self) -> RewardWork | None:
        """What rewards add to an iteration; None without rewards."""
        return count_reward_work(self.config, self.pipeline)

    @property
    def checkpointing(self) -> bool:
        """Whether gradient checkpointing is enabled."""
        return self.config.parallel.gradient_checkpointing

    @property
    def graphs(self) -> int:
        """Number of autograd graphs alive at once: the kept graph of the student and that of the
        fake, or one if the student call is repeated instead.
        """
        objective = self.config.objective
        if objective.through_scores:  # the student's, the fake's and the teacher's
            return 2 + teacher_calls(self.config)
        fake = "fake" in objective.roles
        return 2 if fake and not graded_twice(self.config) else 1

    @property
    def whole(self) -> int:
        """Bytes of the unquantized base in the run's dtype."""
        return self.weights.base * bytes_per_value(torch_dtype(self.config.model))

    def activations(self, checkpointing: bool) -> int:
        """Return the bytes that all graphs alive at the same time keep.

        Args:
            checkpointing: Whether gradient checkpointing is enabled.

        Returns:
            Bytes on one rank.
        """
        network, critic = self.calls.network, self.calls.discriminator
        graph = self._graph(network, checkpointing)
        others = (self.graphs - 1) * graph  # of the fake
        if critic:
            others = max(others, self._graph(critic, checkpointing))
        return graph + others

    def _graph(self, call: Trace, checkpointing: bool) -> int:
        """Return the bytes that the graph of one call keeps."""
        return call.footprint(checkpointing).kept + self._attention(call, checkpointing)

    def _attention(self, call: Trace, checkpointing: bool) -> int:
        """Return the bytes of attention outputs that are kept in addition to the blocks' inputs."""
        return call.attention_bytes * (checkpointing and self.config.parallel.keep_attention)

    def alive(self, checkpointing: bool) -> tuple[float, float]:
        """Return the peak bytes of activations, working memory and gradients in an iteration.

        In the first micro-batch the gradients exist only at the end of the backward pass, when its
        activations have been freed.

        Args:
            checkpointing: Whether gradient checkpointing is enabled.

        Returns:
            Two numbers of bytes on one rank at the same moment: activations (of all graphs) with
                the working memory of a backward pass, and gradients.
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
        """Whether gradients of an earlier backward pass exist during a backward pass."""
        batch, objective = self.config.batch, self.config.objective
        return self.by_deepspeed or batch.accumulation > 1 or objective.updates == "joint"

    @property
    def _gradients(self) -> float:
        """Peak bytes of gradients. Without DeepSpeed, gradients of one role are freed after its
        step.
        """
        together = self.by_deepspeed or self.config.objective.updates == "joint"
        values = max(self.weights.trainable, self.weights.heads)
        at_once = self.weights.trained if together else values
        return 4 * at_once / self.weights.experts / self.shards(2)

    def memory(self) -> dict[str, float]:
        """Estimate the memory of one rank at the peak of an iteration.

        Returns:
            Bytes by purpose; parts of size 0 are left out.
        """
        parallel, lora = self.config.parallel, self.config.trains_lora
        bases = 1 if parallel.share_base or not lora else len(self.weights.generators)
        frozen = bases * self.weights.base_bytes / self.shards(3)
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
            "frozen weights": 0.0 if offloaded and lora else frozen,  # the teacher, without LoRA
            "buffers": float(bases * self.weights.buffers),
            "gathered weights": gathered if self._zero_stage == 3 else 0.0,
            "trained weights, float32": 0.0 if offloaded else trained / self.shards(3),
            "gradients": gradients,
            "optimiser": 0.0 if parallel.offload != "none" else 2 * trained / self.shards(1),
            "average": self.weights.trainable * 4 / self.shards(3) if self.config.ema else 0.0,
            "DeepSpeed's master weights and buffers": self._held,
            "autoencoder": float(self.pipeline.vae),
            "finished trajectories": self.kept,
            "activations": float(activations),
            "working memory": alive - activations,
        }
        return {name: value for name, value in parts.items() if value}

    @property
    def parked(self) -> float:
        """Bytes of the first rank's base that the check of the export moves to CPU memory."""
        sharded = self.ranks > 1 and self.config.parallel.zero_stage == 3
        return 0.0 if sharded else self.memory().get("frozen weights", 0.0)

    @property
    def state(self) -> float:
        """Bytes of a checkpoint: weights, moments, average, and trajectories that rewards use."""
        saved = SAVED[self._zero_stage] if self.by_deepspeed else SAVED_ALONE
        average = 4 * self.weights.trainable if self.config.ema else 0
        ranks = self.ranks // self.config.parallel.sequence
        return saved * 4 * self.weights.trained + average + self.kept * ranks

    @property
    def kept(self) -> float:
        """Bytes of finished trajectories on each data-parallel rank."""
        return self.rewards.kept if self.rewards else 0.0

    @property
    def _held(self) -> float:
        """Bytes that DeepSpeed keeps on a rank beside weights, gradients and moments."""
        stage, offload = self._zero_stage, self.config.parallel.offload
        kept = held(self.weights, stage=stage, shards=self.shards(1), offload=offload)
        return kept if self.by_deepspeed else 0.0

    @property
    def swapping(self) -> bool:
        """Whether the expert that is not in use is kept in CPU memory."""
        return self.config.model.idle_expert == "host"

    @property
    def _zero_stage(self) -> int:
        return self.config.parallel.zero_stage if self.by_deepspeed else 0

    @property
    def by_deepspeed(self) -> bool:
        """Whether DeepSpeed runs the training."""
        return self.ranks > 1 or self.launched or bool(needs_launcher(self.config))

    def shards(self, stage: int) -> int:
        """Return the number of ranks over which ZeRO distributes what it shards from `stage` on.

        Args:
            stage: ZeRO stage.

        Returns:
            Number of ranks, 1 if nothing is sharded.
        """
        return self.ranks if self._zero_stage >= stage else 1

    def pictures(self, calls: int) -> float:
        """Return the peak bytes while samples are generated and decoded.

        All samples are generated as one batch; only small ones are decoded together.

        Args:
            calls: Memory needed per sample, as a multiple of the memory of one network call.

        Returns:
            The larger of the bytes for generating all samples and for decoding a part of them.
        """
        log, batch = self.config.log, self.config.batch
        samples = len(log.sample_prompts) or min(log.sample_count, self.prompts)
        made = calls * self.calls.network.ungraded * samples / batch.micro
        together = min(samples, self.pipeline.at_once)
        return max(self.pipeline.decoding * together, made)

    def moments(self) -> dict[str, float]:
        """Estimate the peak memory of each phase of a run on the first rank, which needs the most.

        PyTorch's workspace is not included.

        Returns:
            Bytes by phase, in the order of the run.
        """
        memory = self.memory()
        passing = math.fsum(memory.get(name, 0.0) for name in PASSING)
        training = math.fsum(memory.values())
        resting = training - passing - memory.get("gathered weights", 0.0)
        # Full training: a float32 copy while each role is built and while the student is written.
        copies = self.weights.base * 4 if not self.config.trains_lora else 0
        whole = self.whole / (1 + self.swapping)
        checked = whole + copies + self.pictures(self.config.parallel.sequence)
        scoring = {}
        if self.rewards:
            graph = self._graph(self.calls.network, self.checkpointing) * self.rewards.graph
            scoring["scoring with rewards"] = training - passing + graph + self.rewards.decoding
        return {
            "loading the base": float(whole + copies),
            "embedding the prompts": float(self.pipeline.text),  # the base is in CPU memory
            "training": training,
            **scoring,
            "making samples": training - passing + self.pictures(teacher_calls(self.config)),
            "checking the export": resting - self.parked + checked,  # on one rank
        }

    def total(self) -> float:
        """Estimate the peak memory of the run on the first rank.

        Returns:
            Bytes.
        """
        return max(self.moments().values())

    @property
    def narrowest(self) -> str:
        """Phase of the run with the highest memory use, a key of `moments`."""
        return max(self.moments().items(), key=lambda moment: moment[1])[0]

    def flops(self) -> float:
        """Return the FLOPs of one iteration on one rank, including recomputed forward passes.

        Returns:
            Floating-point operations of matrix products and attention.
        """
        kept = self.config.parallel.keep_attention
        return self._per_iteration(
            lambda call: call.forward_flops,
            lambda call: call.backward_flops,
            lambda call: call.forward_flops - kept * call.attention_flops,
        )

    def moved(self) -> float:
        """Return the bytes that memory-bound kernels read and write in one iteration on one rank.

        These are all kernels except matrix products and attention: in network calls, in
        dequantizing the base, and in the optimizer.

        Returns:
            Bytes.
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
        return calls + whole + OPTIMISER_BYTES * self.weights.trained / experts / self.shards(1)

    def kernels(self) -> float:
        """Return the number of kernels that one rank launches for the network calls of one
        iteration.

        Returns:
            Number of kernels.
        """
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
        """Sum a cost over all calls of an iteration. `again` is the cost of recomputing a forward
        pass.
        """
        calls, critic = self.calls, self.calls.discriminator

        def both_ways(call: Trace) -> float:
            return backward(call) + (again(call) if self.checkpointing else 0.0)

        total = calls.forwards * forward(calls.network) + calls.backwards * both_ways(calls.network)
        if critic:
            # The discriminator's turn compares two batches and only computes gradients of its
            # heads. The student's turn backpropagates through the whole discriminator.
            total += 3 * forward(critic) + both_ways(critic)
        return total * self.config.batch.accumulation

    @property
    def base_uses(self) -> float:
        """Number of times a micro-batch needs the whole base: once per call, for any batch size,
        and once per backward pass. Recomputing a block reuses the weights gathered for its backward
        pass.
        """
        return self.calls.forwards - (teacher_calls(self.config) - 1) + self.calls.backwards

    def traffic(self) -> dict[str, float]:
        """Return the bytes that one rank sends in one iteration.

        In a ring, a reduction sends every byte once, and distributing the result sends it once
        more. ZeRO-3 only reduces gradients. ZeRO-1 and ZeRO-2 do both, and then distribute the
        weights that each rank's optimizer shard has updated.

        Returns:
            Bytes by purpose; empty for one rank.
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
