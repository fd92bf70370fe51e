"""What a run reads: prompts, real clips, and how many samples make a step."""

from __future__ import annotations

from dataclasses import dataclass

from .ranges import ranges_of
from .rules import check_rules

PROMPT_RULES = ranges_of("prompts")
BATCH_RULES = ranges_of("batch")
REAL_RULES = ranges_of("real")


@dataclass(frozen=True)
class PromptConfig:
    """Training prompts, and where their embeddings are cached."""

    path: str = ""
    """A .txt, .jsonl, .csv or .parquet file, or the name of a ready list."""
    column: str = "prompt"
    cache: str = "cache/embeddings"
    limit: int = 0
    """Use only the first so many prompts; 0 uses all."""
    skip_empty: bool = False
    """Leave out empty cells of a table, which are refused otherwise."""
    negative: str = ""
    """The prompt of the teacher's unconditional branch, which guidance leads away from."""

    def __post_init__(self) -> None:
        check_rules(self, PROMPT_RULES)


@dataclass(frozen=True)
class BatchConfig:
    """Videos per optimiser step = micro x accumulation x data-parallel ranks = total."""

    micro: int = 1
    """Videos of a micro-batch: what a rank holds at once."""
    accumulation: int = 1
    """Micro-batches of a rank in each step; follows from `total`, if that is given."""
    total: int = 0
    """Videos of a step on all ranks together, the same on any number of them; 0 leaves it to the
    others.
    """

    def __post_init__(self) -> None:
        check_rules(self, BATCH_RULES)


@dataclass(frozen=True)
class RealConfig:
    """Real videos or images, for kinds that compare with them."""

    path: str = ""
    """A folder, read with all its subfolders. No captions are needed."""
    cache: str = "cache/latents"
    limit: int = 0
    """Use only the first so many files; 0 uses all."""

    def __post_init__(self) -> None:
        check_rules(self, REAL_RULES)
