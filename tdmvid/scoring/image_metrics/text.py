"""Legible text: how well OCR reads a prompt's quoted words in its image."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ...parallel.launch import signals_held
from ..preflight import Needed
from .base import ImageMetric, ImageSet, by_prompt

TIMEOUT = 120
"""Seconds after which Tesseract hangs; it cannot be interrupted."""
TESSERACT = Needed("tesseract", "apt-get install tesseract-ocr", package=True)


def wanted_text(prompt: str) -> str:
    """Return the text that a prompt asks to be written: its parts in quotation marks, joined.

    Parts without a letter or digit are left out, because these are all that is compared.

    Args:
        prompt: The prompt.

    Returns:
        The text; "" if there is none.
    """
    found = re.findall(r'"([^"]+)"|“([^”]+)”|(?<!\w)\'([^\']+)\'(?!\w)', prompt)
    return " ".join(part for match in found for part in match if _letters(part))


def legibility(file: Path, text: str) -> float:
    """Return how well Tesseract reads a text in an image.

    Args:
        file: Image file.
        text: The expected text. Only letters and digits count.

    Returns:
        1 - edit distance / length, at least 0.

    Raises:
        ValueError: Tesseract failed, or the text has no letter or digit.
    """
    try:
        with signals_held():  # multithreading makes Tesseract slower on images of this size
            done = subprocess.run(
                ["tesseract", str(file), "-", "--psm", "11"],
                capture_output=True,
                text=True,
                env=os.environ | {"OMP_THREAD_LIMIT": "1"},
                timeout=TIMEOUT,
            )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{file}: tesseract took more than {TIMEOUT} seconds: check that the image and"
            " tesseract-ocr work, with `tesseract FILE -`"
        ) from None
    if done.returncode:
        raise ValueError(
            f"{file}: tesseract failed ({done.stderr.strip().splitlines()[-1:]}): is it an image?"
        )
    want, read = _letters(text), _letters(done.stdout)
    if not want:
        raise ValueError(f"text {text!r} has no letter or digit to read")
    return max(0.0, 1 - edit_distance(want, read) / len(want))


def edit_distance(a: str, b: str) -> int:
    """Count the insertions, deletions and replacements that turn `a` into `b`.

    Args:
        a: A text.
        b: Another text.

    Returns:
        Levenshtein distance.
    """
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


def _letters(words: str) -> str:
    return re.sub(r"[\W_]+", "", words).lower()


def score_text(images: ImageSet) -> dict[str, float]:
    """Return the legibility of each prompt that asks for text.

    Args:
        images: The images to score.

    Returns:
        Scores by prompt.
    """
    scores = []
    for file, prompt in zip(images.files, images.prompts, strict=True):
        text = wanted_text(prompt)
        scores.append(legibility(file, text) if text else None)
    return by_prompt(images, scores)


def check_prompts(prompts: Sequence[str], source: str) -> None:
    """Check that at least one prompt asks for text.

    Args:
        prompts: The prompts.
        source: File of the prompts, for the message.

    Raises:
        ValueError: No prompt asks for text.
    """
    if not any(wanted_text(prompt) for prompt in prompts):
        raise ValueError(
            f"metrics: text scores words in quotation marks, and no prompt of {source} has any:"
            ' write e.g. a sign that says "open", or remove text from metrics'
        )


TEXT = ImageMetric("text", (TESSERACT,), score_text, check_prompts)
