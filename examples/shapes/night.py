"""A style of the shapes world, night: the same objects on a nearly black background.

The world's own backgrounds have shades from 0.08 (dark) to 0.50. Night has 0.05 in every video.

Shapes: N videos [N, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tdmvid.shapes import world

SHADE, LIMIT = 0.05, 0.07  # the background's shade, and the lightest one that counts as night


def draw_videos(things: list[tuple[world.Thing, ...]], generator: torch.Generator) -> Tensor:
    """Draw ground-truth videos of captions in the style.

    Args:
        things: Objects of each caption.
        generator: Random number generator.

    Returns:
        Videos [N, 3, F, H, W] in [-1, 1].
    """
    scene = world.sample_scene(things, generator)
    return world.render(replace(scene, shade=torch.full_like(scene.shade, SHADE)))


def background(videos: Tensor) -> Tensor:
    """Measure the shade of the background, as the median over pixels and frames.

    Args:
        videos: Videos [N, 3, F, H, W] in [-1, 1].

    Returns:
        Shades [N] in [0, 1]; 0 is black. Objects cover less than half of a video, so they do not
        change the median.
    """
    grey = (videos.float().clamp(-1, 1).mean(1) + 1) / 2
    return grey.flatten(1).median(1).values


def shows_night(videos: Tensor) -> Tensor:
    """Return whether each video has the style.

    Args:
        videos: Videos [N, 3, F, H, W] in [-1, 1].

    Returns:
        Boolean [N].
    """
    return background(videos) <= LIMIT
