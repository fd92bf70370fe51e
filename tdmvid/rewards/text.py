"""Legible text: how well OCR reads the quoted words of a prompt in a sample.

Shapes: B samples [B, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.video import write_image
from ..scoring.image_metrics.text import TESSERACT, legibility, wanted_text
from .frames import chosen_frames


def load_text(model: str) -> TextReward:
    """Make the reward.

    Args:
        model: Not used.

    Returns:
        The reward.

    Raises:
        ValueError: Tesseract is not installed.
    """
    if shutil.which(TESSERACT.path) is None:
        raise ValueError(
            f"rewards.function='text' needs the program {TESSERACT.path}: {TESSERACT.source}"
        )
    return TextReward()


class TextReward:
    """Share of the letters and digits that Tesseract reads as quoted in the prompt, 0 to 1.

    It is the mean over the first, the middle and the last frame. A prompt without words in
    quotation marks gets 0.
    """

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Check that at least one prompt asks for text.

        Args:
            prompts: Prompts of the run.

        Raises:
            ValueError: No prompt has words in quotation marks.
        """
        if not any(wanted_text(prompt) for prompt in prompts):
            raise ValueError(
                "rewards.function='text' reads words in quotation marks, and no prompt has any:"
                ' write e.g. a sign that says "open", or remove the reward'
            )

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score samples.

        Args:
            samples: Samples [B, 3, F, H, W] in [-1, 1].
            prompts: Prompt of each sample.

        Returns:
            Rewards [B].
        """
        frames = chosen_frames(samples.float()).cpu()
        rewards = torch.zeros(len(prompts), dtype=torch.float64)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "frame.png"
            for index, prompt in enumerate(prompts):
                if not (text := wanted_text(prompt)):
                    continue
                scores = []
                for frame in frames[index].unbind(1):
                    write_image(file, frame)
                    scores.append(legibility(file, text))
                rewards[index] = sum(scores) / len(scores)
        return rewards
