"""Settings of rewards; distill/reward.py has the mathematics, docs/rewards.md the use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .objectives import TDMSettings
from .ranges import ranges_of
from .rules import Rule, check_rules

NAMED = "names a function as 'package.module:name', or a built-in reward: see docs/rewards.md"
RULES = (
    *ranges_of("rewards"),
    Rule(lambda reward: not reward.function, "function", NAMED),
    Rule(lambda reward: reward.strength == 0, "strength", "has no effect: leave it out"),
    Rule(
        lambda reward: reward.process == "own" and reward.input == "latents",
        "process",
        "scores decoded samples only, not input={input}: use process='main', or input='samples'",
    ),
    Rule(
        lambda reward: reward.timeout > 0 and reward.process == "main",
        "timeout",
        "can end a function in a process of its own only: use process='own', or leave it out",
    ),
    Rule(
        lambda reward: reward.device and reward.process == "main",
        "device",
        "has no effect with process={process}, which passes samples on the run's device: use"
        " process='own', or move them in the function",
    ),
)


@dataclass(frozen=True)
class RewardConfig:
    """One reward, and how much its student is to follow it."""

    function: str = ""
    """ "package.module:name", called with samples [B, 3, F, H, W] in [-1, 1] and B prompts; returns
    a number for each. Or the name of a built-in one.
    """
    strength: float = 1.0
    """lam: the finished samples' law becomes exp(lam r) times what it would be without."""
    normalise: Literal["none", "prompt"] = "none"
    """prompt: measure the strength in deviations of the reward within a prompt, of the student at
    the start of the run.
    """
    floor: float = 0.05
    """The smallest deviation that `normalise` divides by."""
    deviation_prompts: int = 8
    """Prompts that `normalise` samples at the start of the run."""
    deviation_samples: int = 8
    """Samples of each."""
    warmup: int = 0
    """Iterations over which the strength rises linearly from 0."""
    input: Literal["samples", "latents"] = "samples"
    """What the function gets: decoded samples, or latents [B, ...]."""
    process: Literal["main", "own"] = "main"
    """Where the function runs: in the run's process, or in one of its own on each rank."""
    device: str = ""
    """Device of samples in a process of its own, e.g. "cuda:1"; empty is the CPU."""
    timeout: float = 0.0
    """Seconds after which a call in a process of its own has failed; 0 waits for ever."""
    on_failure: Literal["stop", "mean"] = "stop"
    """What a function that raises, takes too long, or returns what is no finite number does: stop
    the run, or count as the mean of the batch.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)


REWARD_RULES = (
    Rule(
        lambda run: run.rewards and run.objective.kind == "gan",
        "objective.kind",
        "has an adversarial term, which pulls back to the law of real clips without the reward: use"
        " kind 'tdm', or no rewards",
    ),
    Rule(
        lambda run: run.rewards and run.objective.through_scores,
        "objective.kind",
        "needs a fake that is the student's own score, and rewards move it away: use kind 'tdm', or"
        " no rewards",
    ),
    Rule(
        lambda run: (
            run.rewards
            and isinstance(run.objective, TDMSettings)
            and run.objective.segments == "everywhere"
        ),
        "objective.segments",
        "compares predictions of all steps at all times, and a reward is known of finished samples:"
        " use segments='separate', or no rewards",
    ),
    Rule(
        lambda run: run.rewards and "fake" not in run.objective.roles,
        "objective.kind",
        "has no fake, through which rewards enter: use kind 'tdm', or no rewards",
    ),
    Rule(
        lambda run: (
            run.rewards and run.objective.rollout == "stream" and run.objective.draws == "shared"
        ),
        "objective.draws",
        "has nothing to share where rewards teach the fake on trajectories that have ended"
        " (rollout={objective.rollout}): use draws='own', or no rewards",
    ),
    Rule(
        lambda run: (
            run.rewards and run.objective.rollout == "stream" and run.objective.own_trajectories > 0
        ),
        "objective.fake_updates",
        "has no ended trajectories for the updates of its own with rollout={objective.rollout} and"
        " rewards: use fake_trajectories='same'",
    ),
    Rule(
        lambda run: len({reward.function for reward in run.rewards}) < len(run.rewards),
        "rewards",
        "lists a function twice: add their strengths",
    ),
)
"""Rules between a run and its rewards."""
