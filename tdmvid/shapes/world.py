"""The shapes world: procedurally drawn videos of moving shapes, and their captions.

A caption specifies colour, shape and direction of motion of one or two objects. Everything else
(position, size, speed, a slight tilt and spin, background shade) is random, so every caption has a
whole distribution of videos.

Shapes: B videos, N objects per video (2 slots, the second may be empty), F frames, H x W pixels.
Videos are float32 [B, 3, F, H, W] in [-1, 1]. Lengths are in pixels.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

FRAMES, SIZE = 9, 64
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.15, 0.72, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "magenta": (0.85, 0.20, 0.85),
    "cyan": (0.15, 0.80, 0.85),
}
SHAPES = ("ring", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHADE, SHADES = 0.08, 0.42  # the darkest background shade, and the range of shades above it
PAIR_SHARE = 0.4  # share of captions that name two objects
EDGE = 2.5  # width of an object's anti-aliased edge, in pixels
HELD_OUT_SHARE = 0.1  # share of captions that are never trained on

_COLOUR_NAMES, _DIRECTION_NAMES = tuple(COLOURS), tuple(DIRECTIONS)


@dataclass(frozen=True)
class Thing:
    """One object of a caption, as indices into COLOURS, SHAPES and DIRECTIONS."""

    colour: int
    shape: int
    direction: int

    def __str__(self) -> str:
        return (
            f"a {_COLOUR_NAMES[self.colour]} {SHAPES[self.shape]} moving"
            f" {_DIRECTION_NAMES[self.direction]}"
        )


def caption(things: tuple[Thing, ...]) -> str:
    """Return the caption of one or two objects.

    Args:
        things: The objects.

    Returns:
        Text such as "a red ring moving left".
    """
    return " and ".join(str(thing) for thing in things)


def parse(text: str) -> tuple[Thing, ...]:
    """Return the objects that a caption names.

    Args:
        text: The caption.

    Returns:
        One or two objects.

    Raises:
        ValueError: The text is not a caption of this world.
    """
    things = []
    for part in text.strip().split(" and "):
        words = part.split()
        try:
            article, colour, shape, moving, direction = words
            if (article, moving) != ("a", "moving"):
                raise ValueError
            things.append(
                Thing(
                    _COLOUR_NAMES.index(colour),
                    SHAPES.index(shape),
                    _DIRECTION_NAMES.index(direction),
                )
            )
        except ValueError:
            raise ValueError(
                f"{text!r} is not a caption of the shapes world: write 'a red ring moving left'"
            ) from None
    return tuple(things)


def held_out(text: str) -> bool:
    """Return whether a caption belongs to the test set, by a stable hash.

    Args:
        text: The caption.

    Returns:
        True for about a tenth of all captions.
    """
    return hashlib.sha256(text.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def draw_captions(
    count: int, generator: torch.Generator, *, test: bool = False, pair_share: float = PAIR_SHARE
) -> list[tuple[Thing, ...]]:
    """Draw random captions.

    Args:
        count: Number of captions.
        generator: Random number generator.
        test: Whether to draw from the held-out captions instead of the training captions.
        pair_share: Share of captions with two objects.

    Returns:
        Objects of each caption.
    """
    out: list[tuple[Thing, ...]] = []
    while len(out) < count:
        pick = torch.rand(7, generator=generator).tolist()
        colours = int(pick[0] * 6), int(pick[1] * 5)
        second = (colours[0] + 1 + colours[1]) % 6  # two objects never share a colour
        first = Thing(colours[0], int(pick[2] * 4), int(pick[3] * 4))
        things = (
            (first, Thing(second, int(pick[4] * 4), int(pick[5] * 4)))
            if pick[6] < pair_share
            else (first,)
        )
        if held_out(caption(things)) == test:
            out.append(things)
    return out


def _bar(along: Tensor, across: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance to one bar of a cross."""
    return torch.maximum(along.abs() - 1.12 * radius, across.abs() - 0.36 * radius)


def _signed_distance(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Return the signed distance in pixels (negative inside) to each object's outline. All
    arguments broadcast.
    """
    ring = (torch.hypot(x, y) - 0.72 * radius).abs() - 0.28 * radius
    square = torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    slant = 0.5 * y.neg() + (math.sqrt(3) / 2) * x.abs()
    triangle = torch.maximum(slant, y) - 0.68 * radius
    cross = torch.minimum(_bar(x, y, radius), _bar(y, x, radius))
    return torch.where(
        shape == 0, ring, torch.where(shape == 1, square, torch.where(shape == 2, triangle, cross))
    )


@dataclass(frozen=True)
class Scene:
    """Everything that determines a batch of videos.

    Shapes: `start` is [B, 2, 2], `shade` is [B], all others are [B, 2].
    """

    present: Tensor
    colour: Tensor
    shape: Tensor
    direction: Tensor
    radius: Tensor
    start: Tensor
    speed: Tensor
    angle: Tensor
    spin: Tensor
    shade: Tensor

    def centres(self) -> Tensor:
        """Return the centre (x, y) of each object in each frame.

        Returns:
            Positions [B, 2, F, 2] in pixels.
        """
        unit = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[self.direction]
        steps = torch.arange(FRAMES, dtype=torch.float32).view(1, 1, FRAMES, 1)
        return self.start[:, :, None] + steps * (self.speed[..., None] * unit)[:, :, None]


def _index(things: list[tuple[Thing, ...]], name: str) -> Tensor:
    """Return one attribute of every object, [B, 2]. An empty second slot repeats the first."""
    return torch.tensor([[getattr(thing, name) for thing in (t[0], t[-1])] for t in things])


def _sample_free(things: list[tuple[Thing, ...]], generator: torch.Generator) -> Scene:
    count = len(things)
    u = torch.rand(count, 2, 6, generator=generator)
    direction, radius = _index(things, "direction"), 10.0 + 3.5 * u[..., 0]
    speed = 1.6 + 2.0 * u[..., 1]
    travel = speed * (FRAMES - 1)
    unit = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)[direction]
    low = radius[..., None] + (-unit).clamp(min=0) * travel[..., None]
    high = SIZE - radius[..., None] - unit.clamp(min=0) * travel[..., None]
    return Scene(
        present=torch.tensor([[True, len(t) == 2] for t in things]),
        colour=_index(things, "colour"),
        shape=_index(things, "shape"),
        direction=direction,
        radius=radius,
        start=low + (high - low) * u[..., 2:4],
        speed=speed,
        angle=0.2 * (2 * u[..., 4] - 1),
        spin=0.025 * (2 * u[..., 5] - 1),
        shade=SHADE + SHADES * torch.rand(count, generator=generator),
    )


def _tensors(scene: Scene) -> list[Tensor]:
    return [getattr(scene, field.name) for field in fields(scene)]


def sample_scene(things: list[tuple[Thing, ...]], generator: torch.Generator) -> Scene:
    """Draw a random scene for each caption. Two objects may touch, but hide at most a corner of
    each other.

    Args:
        things: Objects of each caption.
        generator: Random number generator.

    Returns:
        Scenes of the B captions.
    """
    scene = _sample_free(things, generator)
    for _ in range(50):
        gap = (scene.centres()[:, 0] - scene.centres()[:, 1]).norm(dim=-1).amin(-1)
        bad = scene.present[:, 1] & (gap < 0.85 * scene.radius.sum(-1))
        if not bad.any():
            break
        again = _sample_free(things, generator)
        scene = Scene(
            *(
                torch.where(bad.view(-1, *[1] * (new.dim() - 1)), new, old)
                for old, new in zip(_tensors(scene), _tensors(again), strict=True)
            )
        )
    return scene


def _wide(attribute: Tensor) -> Tensor:
    """Reshape [B, 2] to [B, 2, 1, 1, 1]."""
    return attribute[..., None, None, None]


def cover(scene: Scene) -> Tensor:
    """Compute how much of each pixel each object covers, with anti-aliased edges.

    Args:
        scene: Scenes of B videos.

    Returns:
        Shares [B, 2, F, H, W] in [0, 1], regardless of objects in front.
    """
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    centre = scene.centres()[..., None, None]
    turn = scene.angle[..., None] + scene.spin[..., None] * torch.arange(FRAMES)
    cos, sin = turn.cos()[..., None, None], turn.sin()[..., None, None]
    dx, dy = (
        grid.view(1, -1) - centre[:, :, :, 0],
        grid.view(-1, 1) - centre[:, :, :, 1],
    )  # [B, 2, F, H, W]
    inside = _signed_distance(
        _wide(scene.shape), cos * dx + sin * dy, cos * dy - sin * dx, _wide(scene.radius)
    )
    return (0.5 - inside / EDGE).clamp(0, 1) * _wide(scene.present)


def render(scene: Scene) -> Tensor:
    """Draw anti-aliased videos of scenes. The second object is drawn over the first.

    Args:
        scene: Scenes of B videos.

    Returns:
        Videos [B, 3, F, H, W] in [-1, 1].
    """
    covered = cover(scene)
    paint = torch.tensor(list(COLOURS.values()))[scene.colour]  # [B, 2, 3]
    video = scene.shade.view(-1, 1, 1, 1, 1).expand(-1, 3, FRAMES, SIZE, SIZE)
    for slot in range(2):
        mask = covered[:, slot, None]
        video = video * (1 - mask) + paint[:, slot, :, None, None, None] * mask
    return video * 2 - 1


def draw_videos(things: list[tuple[Thing, ...]], generator: torch.Generator) -> Tensor:
    """Draw ground-truth videos of captions.

    Args:
        things: Objects of each caption.
        generator: Random number generator.

    Returns:
        Videos [B, 3, F, H, W] in [-1, 1].
    """
    return render(sample_scene(things, generator))
