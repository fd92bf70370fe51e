"""What DeepSpeed keeps in addition to weights, gradients and moments, in memory and in checkpoints.

Measured on a CPU: float32 values that are alive after an iteration, and files of a checkpoint.
"""

from __future__ import annotations

from .counts import Weights

BUCKET = 500_000_000
"""Largest number of values in a buffer of `parallel.deepspeed_config`."""
SAVED = {0: 4, 1: 5, 2: 5, 3: 4}
"""Copies of the trained weights in a checkpoint, by ZeRO stage: float32 weights and two moments in
DeepSpeed's shards, the weights as safetensors, and before stage 3 the weights once more."""
SAVED_ALONE = 3
"""The same without DeepSpeed: weights and two moments."""
SHARDED = 3
"""Copies that are distributed over the ranks, if the stage is not 0."""


def held(weights: Weights, *, stage: int, shards: int, offload: str) -> float:
    """Return the bytes of master weights and reduction buffers on one rank.

    Args:
        weights: Parameter counts.
        stage: ZeRO stage.
        shards: Number of ranks over which the optimiser is distributed.
        offload: `parallel.offload`; if it is on, the master weights are in host memory.

    Returns:
        Bytes.
    """
    master = weights.trained / shards if stage and offload == "none" else 0.0
    buffers = len(weights.generators) * min(weights.trainable, BUCKET) + min(weights.heads, BUCKET)
    return 4 * (master + buffers)
