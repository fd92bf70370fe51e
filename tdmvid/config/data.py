"""What a run reads: prompts, real clips, and how many samples make a step."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .ranges import ranges_of
from .rules import Rule, check_rules

FILES_OF_PROMPTS = (".txt", ".jsonl", ".csv", ".parquet")


def _names_a_part(prompts: PromptConfig, name: str) -> bool:
    """Whether a setting of a data set is given beside a file."""
    given = getattr(prompts, name) not in ("", "train", None)
    return given and prompts.path.lower().endswith(FILES_OF_PROMPTS)


PROMPT_RULES = (
    *ranges_of("prompts"),
    *(
        Rule(
            functools.partial(_names_a_part, name=name),
            f"prompts.{name}",
            "is of a data set on the hub, and prompts.path={path} is a file: leave it out",
        )
        for name in ("subset", "split", "revision")
    ),
)
BATCH_RULES = ranges_of("batch")
REAL_RULES = ranges_of("real")


@dataclass(frozen=True)
class PromptConfig:
    """Training prompts, and where their embeddings are cached."""

    path: str = ""
    """A .txt, .jsonl, .csv or .parquet file, a folder of videos or images with captions beside
    them, the name of a ready list, a generated list (`images:20000`, `videos:5000`), or the hub id
    of a data set.
    """
    column: str = "prompt"
    """The column of a table or data set that holds the prompts."""
    image_column: str = "image"
    """Of a table for an image-to-video model: the files of first frames, images or videos."""
    images: str = ""
    """First frames for an image-to-video model instead of `image_column`: a folder in which `tdmvid
    sample` has made an image of every prompt.
    """
    subset: str = ""
    """Of a data set on the hub; empty takes its default."""
    split: str = "train"
    """Of a data set on the hub."""
    revision: str | None = None
    """Of a data set on the hub: a branch, tag or commit."""
    cache: str = "cache/embeddings"
    """Folder in which text embeddings are cached; runs can share it."""
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
    """Folder in which the encoded latents are cached; runs can share it."""
    limit: int = 0
    """Use only the first so many files; 0 uses all."""

    def __post_init__(self) -> None:
        check_rules(self, REAL_RULES)
