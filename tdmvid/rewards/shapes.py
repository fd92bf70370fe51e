"""Rewards of the embedded teacher's world.

Shapes: B samples [B, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from ..shapes import world
from ..shapes.judge import Judge, attributes, load_judge


def bright(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for a bright background, which captions leave open, else 0: [B].

    Most pixels show the background, which is grey: it is bright where the median of all values is
    above the middle of the world's shades, so half of the world's videos are.
    """
    middle = 2 * (world.SHADE + world.SHADES / 2) - 1
    return (samples.float().flatten(1).median(1).values > middle).double()


def correct(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for a video that shows what its caption names, to the embedded judge: [B]."""
    things = [world.parse(prompt) for prompt in prompts]
    return attributes(_judge(), samples, things)["all"].double()


@functools.cache
def _judge() -> Judge:
    return load_judge()
