"""How often a run writes checkpoints and samples, and of which prompts."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import ranges_of
from .rules import Rule, check_rules

RULES = (
    *ranges_of("log"),
    Rule(
        lambda log: bool(log.sample_images) and not log.sample_prompts,
        "log.sample_images",
        "are of log.sample_prompts, which is empty: give prompts too, or leave it out",
    ),
)


@dataclass(frozen=True)
class LogConfig:
    """How often, in steps; 0 turns a thing off. The last step always has all of them."""

    checkpoint_every: int = 100
    """Iterations between checkpoints; 0 writes only the last."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""
    sample_every: int = 100
    """Iterations between samples; 0 samples only at the end."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the samples and of the report's gallery; empty takes the first training prompts.
    """
    sample_images: tuple[str, ...] = ()
    """First frames of `sample_prompts` for an image-to-video model, one for each or one for all;
    empty takes those of the first training prompts.
    """
    sample_count: int = 4
    """Number of training prompts to sample, if `sample_prompts` is empty."""
    seed: int = 1234
    """Of the noise of samples and gallery."""
    teacher_steps: int = 50
    """Steps of the teacher's long samples, which the student's are compared with."""
    teacher_shift: float = 1.0
    """Flow shift of the teacher's long samples: what its own scheduler has, 1 for an even grid."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)
