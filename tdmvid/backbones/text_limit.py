"""Find prompts that exceed a text encoder's token limit. Their ends are truncated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from transformers import AutoTokenizer

from ..config import short
from ..data.progress import progress

BATCH = 1000
"""Number of prompts that are tokenized at a time."""
MARK = "\N{FULL BLOCK}"
"""Stands for the prompt in a chat template."""


@dataclass(frozen=True)
class CutPrompts:
    """The truncated prompts of a list, by index."""

    limit: int
    """Number of tokens that the encoder reads, begin and end tokens included."""
    places: tuple[int, ...] = ()
    """Indices of truncated prompts."""

    def note(self, prompts: Sequence[str]) -> str:
        """Return a sentence about the truncated prompts, or "" if there are none."""
        if not self.places:
            return ""
        count, first = len(self.places), self.places[0]
        are = "is" if count == 1 else "are"
        return (
            f"{count:,} of {len(prompts):,} prompts {are} longer than {self.limit} tokens and will"
            f" be truncated, first prompt {first + 1}: {short(prompts[first])}"
        )


def find_cut_prompts(tokenizer: Path, limit: int, prompts: Sequence[str]) -> CutPrompts:
    """Find the prompts of more than `limit` tokens.

    Args:
        tokenizer: Folder of the tokenizer. Without it, no prompt is found.
        limit: Number of tokens that the encoder reads, begin and end tokens included.
        prompts: The texts.
    """
    # A token takes at least one byte, so most prompts need no tokenization.
    long = [place for place, prompt in enumerate(prompts) if len(prompt.encode()) + 2 > limit]
    if not long or not tokenizer.is_dir():
        return CutPrompts(limit)
    tokenize = AutoTokenizer.from_pretrained(tokenizer)
    places: list[int] = []
    with progress("measuring prompts", total=len(long), unit="prompt") as bar:
        for start in range(0, len(long), BATCH):
            some = long[start : start + BATCH]
            texts = [prompts[place] for place in some]
            found = tokenize(texts, truncation=False, padding=False, verbose=False)["input_ids"]
            places += [place for place, tokens in zip(some, found) if len(tokens) > limit]
            bar.update(len(some))
    return CutPrompts(limit, tuple(places))


def find_cut_chats(
    tokenizer: Path, limit: int, prompts: Sequence[str], *, system: str = "", **template: Any
) -> CutPrompts:
    """Find the prompts that exceed `limit` tokens behind the beginning of a chat template.

    Args:
        tokenizer: Folder of the tokenizer. Without it, no prompt is found.
        limit: Number of tokens that the encoder reads.
        prompts: The texts, one turn of a user each.
        system: The system's turn before; empty for none.
        template: Options of the chat template.
    """
    if not tokenizer.is_dir():
        return CutPrompts(limit)
    turns = [{"role": "user", "content": MARK}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    asked: Any = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        turns, tokenize=False, **template
    )
    begin = asked.partition(MARK)[0]
    return find_cut_prompts(tokenizer, limit, [begin + prompt for prompt in prompts])


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence diffusers inside the context: it logs the truncated tokens of each prompt."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
