"""Layout of a video of the shapes world: whether objects are cut off by the frame or touch.

Captions leave it open. In the world, about half of all videos are clear: every object is inside the
frame and apart from the other one in all frames.

Shapes: B videos [B, 3, F, H, W] in [-1, 1]; masks [B, 2, F, H, W] of the two objects that a caption
names, the second one empty if it names one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from . import world

COVER = 0.3
"""Share of a pixel that an object has to cover to count as being there."""


def find_objects(videos: Tensor, things: Sequence[tuple[world.Thing, ...]]) -> Tensor:
    """Find the pixels of the named objects by their colours.

    A pixel belongs to the colour that is nearest to it, if its chroma (the largest minus the
    smallest of its three values) is more than `COVER` of that colour's. Backgrounds are grey.

    Args:
        videos: Videos [B, 3, F, H, W] in [-1, 1].
        things: Objects that each caption names.

    Returns:
        Masks [B, 2, F, H, W], bool.
    """
    paint = torch.tensor(list(world.COLOURS.values()), device=videos.device) * 2 - 1
    videos = videos.float()
    # argmin of |video - paint|^2 over the colours
    near = torch.einsum("kc,bcfhw->bkfhw", paint, videos)
    near = (near - paint.square().sum(1).view(1, -1, 1, 1, 1) / 2).argmax(1)
    full = (paint.amax(1) - paint.amin(1))[near]
    coloured = videos.amax(1) - videos.amin(1) > COVER * full
    named = torch.tensor([[t[0].colour, t[1].colour if len(t) == 2 else -1] for t in things])
    named = named.to(videos.device).view(-1, 2, 1, 1, 1)
    return (near[:, None] == named) & coloured[:, None]


def inside(masks: Tensor) -> Tensor:
    """Check that no object reaches the outermost pixels of the frame.

    Args:
        masks: Masks [B, 2, F, H, W].

    Returns:
        Bool [B].
    """
    edges = (masks[..., 0, :], masks[..., -1, :], masks[..., :, 0], masks[..., :, -1])
    return ~torch.stack([edge.flatten(1).any(1) for edge in edges]).any(0)


def apart(masks: Tensor) -> Tensor:
    """Check that at least two pixels are between the objects in every frame.

    Args:
        masks: Masks [B, 2, F, H, W].

    Returns:
        Bool [B]; True for a single object.
    """
    grown = nnf.max_pool2d(masks.flatten(1, 2).float(), 3, 1, 1).view(masks.shape)
    return ~(grown[:, 0] * grown[:, 1]).flatten(1).any(1)


def clear(masks: Tensor) -> Tensor:
    """Check that every object is inside the frame and apart from the other one.

    Args:
        masks: Masks [B, 2, F, H, W].

    Returns:
        Bool [B].
    """
    return inside(masks) & apart(masks)
