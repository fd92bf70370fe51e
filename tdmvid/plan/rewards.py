"""Count what rewards add to an iteration besides network calls: decoded samples, and the states
of finished trajectories. The work of the reward functions themselves is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig, decoded_frames
from .calls import graded_twice
from .counts import Pipeline

HISTORIES = 4
"""Stored tensors per step and slot of a stream: state and clean prediction, of the current and of
the last finished trajectory (distill/ended.py).
"""


@dataclass(frozen=True)
class RewardWork:
    """What rewards add to an iteration on one rank."""

    samples: float
    """Mean number of finished samples that are scored."""
    decoded: float
    """Mean number of samples that are decoded, as far as the rewards see them."""
    decoding: float
    """Peak bytes while they are decoded, without the weights of the autoencoder."""
    flops: float
    """FLOPs of decoding."""
    kept: float
    """Bytes of the stored trajectories."""
    graph: bool
    """Whether the graph of the student's call exists while samples are scored."""


def count_reward_work(config: RunConfig, pipeline: Pipeline) -> RewardWork | None:
    """Count the work of rewards.

    Args:
        config: Settings of the run, with its gradient accumulation.
        pipeline: Costs of the autoencoder.

    Returns:
        The work; None without rewards.
    """
    if not config.rewards:
        return None
    batch, objective = config.batch, config.objective
    steps = objective.step_set or (config.grid.calls,)
    slots = batch.micro * batch.accumulation
    stream = objective.rollout == "stream"
    # A slot starts K with a probability proportional to 1 / K, and ends after K iterations.
    ended = sum(1 / count for count in steps) / len(steps)
    samples = slots * (ended if stream else 1 + objective.own_trajectories)
    decoded = samples * bool(decoded_frames(config.rewards, config.video.frames))
    return RewardWork(
        samples=samples,
        decoded=decoded,
        decoding=float(batch.micro * pipeline.scored),
        flops=decoded * pipeline.decoding_flops,
        kept=4.0 * HISTORIES * max(steps) * slots * pipeline.latent if stream else 0.0,
        graph=objective.rollout == "stop" and not graded_twice(config),
    )
