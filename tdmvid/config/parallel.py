"""How the work is spread over devices."""

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
        "is not a stage: choose 0 (nothing sharded), 1 (optimiser state), 2 (gradients too) or 3"
        " (weights too)",
    ),
    Rule(
        lambda parallel: (
            parallel.keep_attention
            and (not parallel.gradient_checkpointing or parallel.compile is True)
        ),
        "parallel.keep_attention",
        "works with gradient_checkpointing and without compile: set gradient_checkpointing=true"
        " and compile=false",
    ),
    Rule(
        lambda parallel: parallel.offload == "all" and parallel.zero_stage != 3,
        "parallel.offload",
        "needs parallel.zero_stage=3, which shards the weights, not {zero_stage}: set"
        " zero_stage=3, or offload='optimizer'",
    ),
)


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is spread; `auto` uses DeepSpeed when a launcher started this process."""

    backend: Literal["auto", "none", "deepspeed"] = "auto"
    """none: one process; deepspeed: DeepSpeed, started by `deepspeed` or `torchrun`; auto:
    DeepSpeed when a launcher started this process.
    """
    zero_stage: int = 3
    """DeepSpeed ZeRO stage: 0 shards nothing, 1 the optimiser state, 2 gradients too, 3 weights
    too.
    """
    sequence: int = 1
    """Neighbouring ranks that share the tokens of one video (Ulysses); the rest are data parallel.
    """
    offload: Literal["none", "optimizer", "all"] = "none"
    """What to offload to CPU memory: the optimiser state, or the sharded weights too (ZeRO-3)."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of each block and recompute the rest in the backward pass: less memory,
    more computation.
    """
    keep_attention: bool = False
    """With gradient_checkpointing: keep each attention's output too, which on a long sequence is
    little to hold and most of what is computed again.
    """
    compile: Literal["auto", True, False] = "auto"
    """Compile the network's blocks by torch.compile: a minute or more at the start, then faster
    calls. With ZeRO up to stage 2. auto: on a GPU that has triton and a C compiler, in runs of 200
    iterations and more, where no other setting forbids it.
    """
    share_base: bool = True
    """One frozen base for student and fake; false gives the fake a copy, to compare with."""
    timeout_minutes: float = 30.0
    """A rank that waits longer for another one ends the run; shortly before, every rank writes
    its stack traces.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)
