"""Settings of checkpoints and samples: how often they are written, and for which prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .paths import PathText
from .ranges import ranges_of
from .rules import Rule, check_rules

RULES = (
    *ranges_of("log"),
    Rule(
        lambda log: bool(log.sample_images) and not log.sample_prompts,
        "log.sample_images",
        "needs log.sample_prompts, which is empty: add prompts, or remove log.sample_images",
    ),
)


@dataclass(frozen=True)
class LogConfig:
    """Checkpoints and samples of a run. The last iteration always writes both."""

    checkpoint_every: int = 100
    """Iterations between checkpoints. 0 writes only the last one."""
    keep_checkpoints: int = 2
    """Number of checkpoints to keep, 1 or more. Older ones are deleted."""
    sample_every: int = 100
    """Iterations between samples. 0 samples only after the last iteration."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the samples and of the gallery in the report. An empty list uses the first
    training prompts.
    """
    sample_images: tuple[PathText, ...] = ()
    """Files with the first frames of `sample_prompts`, for an image-to-video model: one per prompt,
    or one for all. An empty list uses the first frames of the first training prompts.
    """
    sample_count: int = 4
    """Number of training prompts to sample if `sample_prompts` is empty, 1 to 10,000."""
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    """Experiment tracker that gets the config and the scalars, in addition to metrics.jsonl and
    TensorBoard: `none`, `wandb` or `mlflow`. Its package must be installed.
    """
    seed: int = 1234
    """Seed of the noise of samples and gallery."""
    teacher_steps: int = 50
    """Number of steps of the teacher's reference samples, 1 to 1000."""
    teacher_shift: float = 1.0
    """Flow shift of the teacher's reference samples, above 0. Use the value of the teacher's own
    scheduler; 1 gives an even grid.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)
