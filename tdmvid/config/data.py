"""Settings of the data: prompts, real clips and batch sizes."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from .paths import PathText
from .ranges import ranges_of
from .rules import Rule, check_rules

FILES_OF_PROMPTS = (".txt", ".jsonl", ".csv", ".parquet")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Check whether a name has the form of a hub id of prompts.

    Args:
        name: The value of `prompts.path`.

    Returns:
        True for "owner/name", unless it ends like a file of prompts.
    """
    return bool(_HUB_ID.fullmatch(name)) and not name.lower().endswith(FILES_OF_PROMPTS)


def _names_a_part(prompts: PromptConfig, name: str) -> bool:
    """Whether a setting of hub data sets is given although `path` is none."""
    given = getattr(prompts, name) not in ("", "train", None)
    return given and bool(prompts.path) and not is_hub_id(str(Path(prompts.path)))


PROMPT_RULES = (
    *ranges_of("prompts"),
    *(
        Rule(
            functools.partial(_names_a_part, name=name),
            f"prompts.{name}",
            "applies to data sets on the hub, and prompts.path={path} is no OWNER/NAME: remove it",
        )
        for name in ("subset", "split", "revision")
    ),
)
BATCH_RULES = ranges_of("batch")
REAL_RULES = ranges_of("real")


@dataclass(frozen=True)
class PromptConfig:
    """Training prompts and the cache of their embeddings."""

    path: PathText = ""
    """Source of the prompts: a .txt, .jsonl, .csv or .parquet file; a folder of videos or images
    with captions next to them; the name of a built-in list; a generated list (`images:20000`,
    `videos:5000`); or the hub id of a data set.
    """
    column: str = "prompt"
    """Column of a table or data set that holds the prompts."""
    image_column: str = "image"
    """Column of a table that holds the files of first frames (images or videos), for an
    image-to-video model.
    """
    images: PathText = ""
    """Folder of first frames for an image-to-video model, used instead of `image_column`:
    `tdmvid sample` has written an image of every prompt to it.
    """
    subset: str = ""
    """Subset of a data set on the hub. Empty uses the default subset."""
    split: str = "train"
    """Split of a data set on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set on the hub. `null` uses the default branch."""
    cache: PathText = "cache/embeddings"
    """Folder in which prompt embeddings are cached. Runs can share it."""
    limit: int = 0
    """Number of prompts to use, from the first. 0 uses all."""
    skip_empty: bool = False
    """Skip empty cells of a table. By default, an empty cell is an error."""
    negative: str = ""
    """Negative prompt: the prompt of the teacher's unconditional branch in guidance."""

    def __post_init__(self) -> None:
        check_rules(self, PROMPT_RULES)


@dataclass(frozen=True)
class BatchConfig:
    """Batch sizes in samples (videos or images).

    An optimiser step uses micro x accumulation x data-parallel ranks = total samples.
    """

    micro: int = 1
    """Samples in a micro-batch, which a rank processes at once; 1 to 4096."""
    accumulation: int = 1
    """Micro-batches that each rank accumulates per step, 1 to 65,536. Computed from `total` if that
    is given.
    """
    total: int = 0
    """Samples per step on all ranks together, independent of the number of ranks. 0 uses `micro`,
    `accumulation` and the number of ranks.
    """

    def __post_init__(self) -> None:
        check_rules(self, BATCH_RULES)


@dataclass(frozen=True)
class RealConfig:
    """Real videos or images for the discriminator of kind `gan`."""

    path: PathText = ""
    """Folder of videos or images, including all subfolders. No captions are needed."""
    cache: PathText = "cache/latents"
    """Folder in which encoded latents are cached. Runs can share it."""
    limit: int = 0
    """Number of files to use, from the first. 0 uses all."""

    def __post_init__(self) -> None:
        check_rules(self, REAL_RULES)
