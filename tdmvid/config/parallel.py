"""Settings of parallelism, memory savings and compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import Rule, check_rules

RULES = (
    *ranges_of("parallel"),
    Rule(
        lambda parallel: parallel.zero_stage not in (0, 1, 2, 3),
        "parallel.zero_stage",
        "is not a ZeRO stage: choose 0 (nothing is sharded), 1 (optimiser state), 2 (gradients"
        " too) or 3 (weights too)",
    ),
    Rule(
        lambda parallel: (
            parallel.keep_attention
            and (not parallel.gradient_checkpointing or parallel.compile is True)
        ),
        "parallel.keep_attention",
        "needs gradient checkpointing and does not work with compile=true: set"
        " gradient_checkpointing=true and compile=false",
    ),
    Rule(
        lambda parallel: parallel.offload == "all" and parallel.zero_stage != 3,
        "parallel.offload",
        "needs parallel.zero_stage=3, which shards the weights, not {zero_stage}: set"
        " zero_stage=3, or offload='optimizer'",
    ),
    Rule(
        lambda parallel: parallel.offload == "optimizer" and parallel.zero_stage == 0,
        "parallel.offload",
        "needs ZeRO, which zero_stage=0 does not use: set zero_stage=1, 2 or 3, or offload='none'",
    ),
    Rule(
        lambda parallel: parallel.offload != "none" and parallel.backend == "none",
        "parallel.offload",
        "needs DeepSpeed, which backend='none' does not use: set backend='auto' and start with"
        " `torchrun` or `deepspeed`, or offload='none'",
    ),
)


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism, memory savings and compilation."""

    backend: Literal["auto", "none", "deepspeed"] = "auto"
    """Training backend: `none` (one process), `deepspeed` (started by `deepspeed` or `torchrun`),
    or `auto`, which uses DeepSpeed if a launcher started this process.
    """
    zero_stage: int = 3
    """ZeRO stage of DeepSpeed. 0 shards nothing, 1 the optimiser state, 2 also the gradients, 3
    also the weights.
    """
    sequence: int = 1
    """Number of neighbouring ranks that share the tokens of one video (Ulysses sequence
    parallelism), 1 to 1024. The remaining factor of the ranks is data parallel.
    """
    offload: Literal["none", "optimizer", "all"] = "none"
    """What to offload to CPU memory: `none`, the `optimizer` state (ZeRO 1 to 3), or `all`, which
    also offloads the sharded weights (ZeRO-3 only).
    """
    gradient_checkpointing: bool = False
    """Store only the inputs of each block and recompute the rest in the backward pass. Needs less
    memory, but is slower.
    """
    keep_attention: bool = False
    """With `gradient_checkpointing`, store the output of each attention instead of recomputing it.
    On long sequences the outputs are small and attention is most of the recomputation.
    """
    compile: Literal["auto", True, False] = "auto"
    """Compile the blocks of the network with torch.compile, with ZeRO stages 0 to 2. Compilation
    takes a minute or more at the start; calls are faster afterwards. `auto` compiles on a GPU with
    triton and a C compiler, in runs of at least 200 iterations, unless another setting forbids it.
    """
    share_base: bool = True
    """Use one frozen base for student and fake. `false` gives the fake its own copy, for
    comparison.
    """
    timeout_minutes: float = 30.0
    """Minutes after which a rank that waits for another rank ends the run, above 0. Shortly before,
    every rank writes its stack traces.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)
