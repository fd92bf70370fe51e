"""Estimate the host memory (CPU memory) that the tensors of a run need."""

from __future__ import annotations

from .deepspeed_state import SHARDED
from .plan import Plan

MASTERS = 4
"""float32 copies of trained weights that DeepSpeed keeps on the host when it offloads: weights,
gradients and two moments."""


def host_moments(plan: Plan) -> dict[str, float]:
    """Estimate the host memory in each phase of a run on the first rank, which needs the most.

    Python, the libraries, the CUDA context and the files that the system caches are not included.

    Args:
        plan: Plan of the run.

    Returns:
        Bytes by phase, in the order of the run.
    """
    resident = _resident(plan)
    return {
        "embedding the prompts": float(plan.whole),  # the base makes room for the encoders
        "writing a checkpoint": resident + _first_state(plan),
        "checking the export": resident + plan.parked + 4.0 * plan.weights.trainable,
    }


def other_ranks(plan: Plan) -> float:
    """Estimate the host memory that each rank but the first needs at its peak.

    Args:
        plan: Plan of the run.

    Returns:
        Bytes.
    """
    return _resident(plan) + (_rank_state(plan) if plan.shards(1) > 1 else 0.0)


def _rank_state(plan: Plan) -> float:
    """Return the bytes of a checkpoint that each rank copies."""
    return SHARDED * 4 * plan.weights.trained / plan.shards(1) + plan.kept


def _first_state(plan: Plan) -> float:
    """Return the bytes that the first rank copies: whole weights and averages too."""
    others = plan.ranks // plan.config.parallel.sequence - 1
    elsewhere = SHARDED * 4 * plan.weights.trained * (1 - 1 / plan.shards(1))
    return plan.state - elsewhere - plan.kept * others


def _resident(plan: Plan) -> float:
    """Return the bytes on the host throughout training."""
    parallel, weights = plan.config.parallel, plan.weights
    size = plan.whole / weights.experts if plan.swapping else 0.0
    if parallel.offload != "none":
        size += MASTERS * 4 * weights.trained / plan.shards(1)
    if parallel.offload == "all":
        size += weights.base_bytes / plan.shards(3)
    return size
