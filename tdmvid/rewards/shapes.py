"""Rewards for the shapes world of the embedded teacher.

Shapes: B samples [B, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from ..shapes import layout, world
from ..shapes.judge import Judge, attributes, features, load_judge


def bright(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for a bright background, which captions do not specify, else 0.

    Most pixels show the grey background. It counts as bright if the median of all values is above
    the middle of the world's background shades, so half of the world's videos are bright.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Ignored.

    Returns:
        Rewards [B].
    """
    middle = 2 * (world.SHADE + world.SHADES / 2) - 1
    return (samples.float().flatten(1).median(1).values > middle).double()


def correct(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for a video that shows everything its caption names according to the embedded judge,
    else 0.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Captions of the shapes world.

    Returns:
        Rewards [B].
    """
    things = [world.parse(prompt) for prompt in prompts]
    return attributes(_judge(), samples, things)["all"].double()


def clear(samples: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return 1 for a video that shows everything its caption names according to the embedded judge,
    with every object inside the frame and apart from the other one in all frames, else 0.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].
        prompts: Captions of the shapes world.

    Returns:
        Rewards [B].
    """
    things = [world.parse(prompt) for prompt in prompts]
    found = layout.clear(layout.find_objects(samples, things)).cpu()
    return (found & attributes(_judge(), samples, things)["all"]).double()


def judged(samples: Tensor) -> Tensor:
    """Return the features of the embedded judge.

    Args:
        samples: Samples [B, 3, F, H, W] in [-1, 1].

    Returns:
        Features [B, 14].
    """
    return features(_judge(), samples)


@functools.cache
def _judge() -> Judge:
    return load_judge()
