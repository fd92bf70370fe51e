"""Prompts that are longer than what a text encoder reads: their ends are cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers.utils import logging
from transformers import AutoTokenizer

from ..config import short

BATCH = 1000
"""Prompts that are tokenised at a time."""


@dataclass(frozen=True)
class CutPrompts:
    """Which prompts of a list are cut, by their places in it."""

    limit: int
    """Tokens that are read, those that mark beginning and end included."""
    places: tuple[int, ...] = ()

    def note(self, prompts: Sequence[str]) -> str:
        """Return a sentence on the prompts that are cut; "" if there are none."""
        if not self.places:
            return ""
        count, first = len(self.places), self.places[0]
        are = "is" if count == 1 else "are"
        return (
            f"{count:,} of {len(prompts):,} prompts {are} longer than {self.limit} tokens, first"
            f" line {first + 1}, {short(prompts[first])}: what follows is not read"
        )


def find_cut_prompts(tokenizer: Path, limit: int, prompts: Sequence[str]) -> CutPrompts:
    """Find the prompts of more than `limit` tokens.

    Args:
        tokenizer: The folder of the tokenizer; without one nothing is found.
        limit: Tokens that are read, those that mark beginning and end included.
        prompts: The texts.
    """
    # A token takes a byte at least: most prompts need not be tokenised.
    long = [place for place, prompt in enumerate(prompts) if len(prompt.encode()) + 2 > limit]
    if not long or not tokenizer.is_dir():
        return CutPrompts(limit)
    tokenize = AutoTokenizer.from_pretrained(tokenizer)
    places: list[int] = []
    for start in range(0, len(long), BATCH):
        some = long[start : start + BATCH]
        texts = [prompts[place] for place in some]
        found = tokenize(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        places += [place for place, tokens in zip(some, found) if len(tokens) > limit]
    return CutPrompts(limit, tuple(places))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the library inside: it prints the tokens that it cuts off, of each prompt."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
