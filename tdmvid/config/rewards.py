"""Settings of rewards. The mathematics is in distill/reward.py; docs/rewards.md shows the use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .objectives import TDMSettings
from .paths import PathText
from .ranges import ranges_of
from .rules import Rule, check_rules

NAMED = "must be 'package.module:name' or the name of a built-in reward: see docs/rewards.md"
MODELS = ("aesthetic", "clip", "hps", "votes")
"""Built-in rewards with a model."""
CHOSEN = ("aesthetic", "hps", "votes")
"""Those without a default model."""
RULES = (
    *ranges_of("rewards"),
    Rule(lambda reward: not reward.function, "function", NAMED),
    Rule(
        lambda reward: reward.strength == 0,
        "strength",
        "turns the reward off: remove the reward, or choose another strength",
    ),
    Rule(
        lambda reward: reward.model and reward.function not in MODELS,
        "model",
        f"has no effect on function={{function}}, only on {', '.join(MODELS)}: remove it",
    ),
    Rule(
        lambda reward: not reward.model and reward.function in CHOSEN,
        "model",
        "is needed by function={function}: name its folder or file; see docs/rewards.md",
    ),
    *(
        Rule(
            lambda reward, name=name: (  # type: ignore[misc]
                reward.normalise == "none" and getattr(reward, name) != getattr(type(reward), name)
            ),
            name,
            "has no effect with normalise={normalise}, where nothing is divided by the deviation:"
            " remove it, or use normalise='prompt'",
        )
        for name in ("floor", "deviation_prompts", "deviation_samples")
    ),
    Rule(
        lambda reward: reward.input == "latents" and reward.function in (*MODELS, "text"),
        "input",
        "must be 'samples' for function={function}, which sees images",
    ),
    Rule(
        lambda reward: reward.frames > 0 and reward.frames != 1 and reward.frames % 8 != 1,
        "frames",
        "must be 1, or 1 more than a multiple of 8, which the autoencoders of all families decode"
        " alone: use 1, 9, 17, 25, ... or 0 for all",
    ),
    Rule(
        lambda reward: reward.frames > 0 and reward.input == "latents",
        "frames",
        "has no effect with input={input}, where nothing is decoded: remove it, or use"
        " input='samples'",
    ),
    Rule(
        lambda reward: reward.frames == 1 and reward.function == "motion",
        "frames",
        "must be at least 9 for function={function}, which compares frames",
    ),
    Rule(
        lambda reward: reward.process == "own" and reward.input == "latents",
        "process",
        "supports decoded samples only, not input={input}: use process='main', or input='samples'",
    ),
    Rule(
        lambda reward: reward.timeout > 0 and reward.process == "main",
        "timeout",
        "needs process='own', because a function in the main process cannot be stopped: use"
        " process='own', or remove it",
    ),
    Rule(
        lambda reward: reward.device and reward.process == "main",
        "device",
        "has no effect with process={process}, where samples are on the device of the run: use"
        " process='own', or move the samples inside the function",
    ),
)


@dataclass(frozen=True)
class RewardConfig:
    """A reward that the student follows in addition to its teacher."""

    function: str = ""
    """Reward function as `package.module:name`, or the name of a built-in reward. It is called with
    samples [B, 3, F, H, W] in [-1, 1] and B prompts, and returns one number per sample.
    """
    strength: float = 1.0
    """Strength lam of the reward r, -1000 to 1000, not 0. The distribution of the finished samples
    is multiplied by exp(lam r).
    """
    model: PathText = ""
    """Model of the built-in rewards `clip`, `hps` and `aesthetic`: a folder or hub name with a
    CLIPModel of transformers in safetensors. For `votes`: the file that `tdmvid study fit` wrote.
    Empty is OpenAI's ViT-L/14 for `clip`.
    """
    normalise: Literal["none", "prompt"] = "none"
    """Unit of `strength`. `none`: the reward as it is. `prompt`: the standard deviation of the
    reward within a prompt, measured on the student at the start of the run.
    """
    floor: float = 0.05
    """Smallest standard deviation that `normalise` divides by, above 0."""
    deviation_prompts: int = 8
    """Number of prompts on which `normalise` measures the deviation, 1 to 10,000."""
    deviation_samples: int = 8
    """Number of samples per prompt for `normalise`, 2 to 10,000."""
    warmup: int = 0
    """Iterations over which the strength rises linearly from 0. 0 turns the warm-up off."""
    input: Literal["samples", "latents"] = "samples"
    """Input of the function: decoded `samples`, or `latents` of shape [B, ...]."""
    frames: int = 0
    """Number of leading frames that the function gets: 1, 9, 17, 25, and so on. If no reward gets
    later frames, they are not decoded. 0 is all frames.
    """
    process: Literal["main", "own"] = "main"
    """Process in which the function runs: the `main` process of the run, or its `own` process on
    each rank.
    """
    device: str = ""
    """Device of the samples with `process: own`: `cuda` is the GPU of the rank, `cuda:1` the same
    GPU for all ranks. Empty is the CPU.
    """
    timeout: float = 0.0
    """Seconds after which a call with `process: own` counts as failed. 0 waits without limit."""
    on_failure: Literal["stop", "mean"] = "stop"
    """Reaction if the function raises an error, exceeds `timeout` or returns a value that is not
    finite. `stop`: stop the run. `mean`: use the mean of the batch instead.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)


REWARD_RULES = (
    Rule(
        lambda run: run.rewards and run.objective.kind == "gan",
        "objective.kind",
        "has an adversarial term, which pulls the student back to the distribution of the real"
        " clips, against the reward: use kind 'tdm', or remove the rewards",
    ),
    Rule(
        lambda run: run.rewards and run.objective.through_scores,
        "objective.kind",
        "needs a fake that is the score of the student, and rewards change the fake: use kind"
        " 'tdm', or remove the rewards",
    ),
    Rule(
        lambda run: (
            run.rewards
            and isinstance(run.objective, TDMSettings)
            and run.objective.segments == "everywhere"
        ),
        "objective.segments",
        "compares predictions of all steps at all times, but rewards are known only for finished"
        " samples: use segments='separate', or remove the rewards",
    ),
    Rule(
        lambda run: run.rewards and "fake" not in run.objective.roles,
        "objective.kind",
        "has no fake, which rewards need: use kind 'tdm', or remove the rewards",
    ),
    Rule(
        lambda run: (
            run.rewards and run.objective.rollout == "stream" and run.objective.draws == "shared"
        ),
        "objective.draws",
        "cannot be shared with rollout={objective.rollout} and rewards, where the fake is trained"
        " on finished trajectories: use draws='own', or remove the rewards",
    ),
    Rule(
        lambda run: (
            run.rewards and run.objective.rollout == "stream" and run.objective.own_trajectories > 0
        ),
        "objective.fake_updates",
        "needs own trajectories for some updates, which rollout={objective.rollout} with rewards"
        " does not have: use fake_trajectories='same'",
    ),
    Rule(
        lambda run: (
            not run.rewards
            and isinstance(run.objective, TDMSettings)
            and run.objective.reward_weights == "student"
        ),
        "objective.reward_weights",
        "has no effect without rewards: add rewards, or remove it",
    ),
    Rule(
        lambda run: (
            run.objective.finished_predictions == "stored"
            and not (run.rewards and run.objective.rollout == "stream")
        ),
        "objective.finished_predictions",
        "has no effect without rewards and rollout='stream': add them, or remove it",
    ),
    Rule(
        lambda run: any(reward.frames > run.video.frames for reward in run.rewards),
        "video.frames",
        "is less than the frames of a reward: lower rewards.frames, or remove it",
    ),
    Rule(
        lambda run: len({_measure(reward) for reward in run.rewards}) < len(run.rewards),
        "rewards",
        "lists a function twice with the same model, frames and input: list it once",
    ),
)
"""Rules between the settings of a run and its rewards."""


def _measure(reward: RewardConfig) -> tuple[str, str, int, str]:
    """Return the settings in which two rewards with the same function may differ."""
    return reward.function, reward.model, reward.frames, reward.input


def names_of(rewards: Sequence[RewardConfig]) -> list[str]:
    """Return the names of rewards in metrics.jsonl.

    Args:
        rewards: Rewards of a run.

    Returns:
        The functions; "clip_2" and so on for further rewards with the same function.
    """
    functions = [reward.function for reward in rewards]
    counts = [functions[: place + 1].count(name) for place, name in enumerate(functions)]
    return [
        name if count == 1 else f"{name}_{count}"
        for name, count in zip(functions, counts, strict=True)
    ]


def decoded_frames(rewards: Sequence[RewardConfig], frames: int) -> int:
    """Return how many leading frames of a finished sample must be decoded for all rewards.

    Args:
        rewards: Rewards of a run.
        frames: Number of frames of a sample.

    Returns:
        The number; 0 if no reward needs decoded samples.
    """
    seen = (reward.frames or frames for reward in rewards if reward.input == "samples")
    return max(seen, default=0)
