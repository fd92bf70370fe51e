"""Legible text: what quoted words of a prompt an OCR reads in its image."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..preflight import Needed
from .base import ImageMetric, ImageSet, by_prompt

TESSERACT = Needed("tesseract", "apt-get install tesseract-ocr", package=True)


def wanted_text(prompt: str) -> str:
    """Return what a prompt asks to be written: its parts in quotation marks, joined."""
    return " ".join(
        part
        for match in re.findall(r'"([^"]+)"|“([^”]+)”|\'([^\']+)\'(?!\w)', prompt)
        for part in match
        if part
    )


def legibility(file: Path, text: str) -> float:
    """Return how much of `text` Tesseract reads in an image: 1 - edit distance / length, of letters
    and digits alone, 0 at worst.
    """
    # Its own threads make it slower on pictures of this size.
    done = subprocess.run(
        ["tesseract", str(file), "-", "--psm", "11"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
    )
    if done.returncode:
        raise ValueError(
            f"{file}: tesseract failed ({done.stderr.strip().splitlines()[-1:]}): is it an image?"
        )
    want, read = _letters(text), _letters(done.stdout)
    if not want:
        raise ValueError(f"text {text!r} has no letter or digit to read")
    return max(0.0, 1 - edit_distance(want, read) / len(want))


def edit_distance(a: str, b: str) -> int:
    """Count the insertions, deletions and replacements that make a into b."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _letters(words: str) -> str:
    return re.sub(r"[\W_]+", "", words).lower()


def score_text(images: ImageSet) -> dict[str, float]:
    """Return the legibility of each prompt that asks for text."""
    scores = []
    for file, prompt in zip(images.files, images.prompts, strict=True):
        text = wanted_text(prompt)
        scores.append(legibility(file, text) if text else None)
    return by_prompt(images, scores)


def check_prompts(prompts: Sequence[str], source: str) -> None:
    """Raise ValueError if no prompt asks for text."""
    if not any(wanted_text(prompt) for prompt in prompts):
        raise ValueError(
            f"metrics: text reads what prompts ask to be written, and none of {source} has words in"
            ' "quotation marks"'
        )


TEXT = ImageMetric("text", (TESSERACT,), score_text, check_prompts)
