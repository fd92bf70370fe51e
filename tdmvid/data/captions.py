"""Generate thousands of varied captions of images and videos from word lists, without a model.

    Generated("videos", 5000).captions()  # the first 5,000 captions of seed 0
    parse_name("images:20000")            # -> Generated("images", 20000, 0)

A caption depends only on (kind, seed, number), on every machine and Python version. Therefore a
longer list begins with the shorter one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .caption_words import (
    LIGHTS,
    LOOKS_OF_IMAGES,
    MEDIA,
    MOVES,
    SCENES,
    VIDEO_STYLES,
    Scene,
)

MOST = 1_000_000
"""Largest number of captions in a list."""
_NAME = re.compile(r"(images|videos):(\d{1,12})(?::(\d{1,12}))?")


@dataclass(frozen=True)
class Generated:
    """A generated list of captions."""

    kind: str
    """`images` or `videos`."""
    count: int
    """Number of captions."""
    seed: int = 0
    """Seed of the list."""

    def captions(self) -> Iterator[str]:
        """Generate the captions, without duplicates.

        Yields:
            The captions in order.

        Raises:
            ValueError: If `count` is not between 1 and `MOST`.
        """
        if not 1 <= self.count <= MOST:
            raise ValueError(
                f"{self.kind}:{self.count}: choose between 1 and {MOST:,} captions, e.g."
                f" {self.kind}:20000"
            )
        seen: set[str] = set()
        number = 0
        while len(seen) < self.count:
            caption = _caption(self.kind, self.seed, number)
            number += 1
            if caption not in seen:
                seen.add(caption)
                yield caption


def parse_name(name: str) -> Generated | None:
    """Parse the name of a generated list.

    Args:
        name: "KIND:COUNT" or "KIND:COUNT:SEED", e.g. "videos:5000:7".

    Returns:
        The list, or None if the name does not have this form.
    """
    found = _NAME.fullmatch(name)
    return found and Generated(found[1], int(found[2]), int(found[3] or 0))


def _caption(kind: str, seed: int, number: int) -> str:
    """Generate the caption with a number."""
    pick = _picker(f"{kind} {seed} {number}")
    scene = pick(SCENES)
    return _video(scene, pick) if kind == "videos" else _image(scene, pick)


_Pick = Callable[[Sequence], Any]


def _picker(name: str) -> _Pick:
    """Return a function that picks an option; each call uses other digits of the name's hash."""
    rest = int.from_bytes(hashlib.sha512(name.encode()).digest(), "big")

    def pick(options: Sequence) -> Any:
        nonlocal rest
        rest, index = divmod(rest, len(options))
        return options[index]

    return pick


def _video(scene: Scene, pick: _Pick) -> str:
    """Compose a video caption: subject, action, place, and possibly light, camera move or style."""
    subject, action = _subject(scene, pick), pick(scene.actions)
    happens = f"{subject} {action} {pick(scene.places)}"
    light, move, style = pick(LIGHTS), pick(MOVES), pick(VIDEO_STYLES)
    endings = ("", f", {light}", f", {move}", f", {light}, {move}", f", {style}, {move}")
    return _sentence(happens + pick(endings))


def _image(scene: Scene, pick: _Pick) -> str:
    """Compose an image caption: subject, pose, and possibly place, light, medium or look."""
    shown = f"{_subject(scene, pick)} {pick(scene.poses)}"
    place, light, look = pick(scene.places), pick(LIGHTS), pick(LOOKS_OF_IMAGES)
    where = pick((shown, f"{shown} {place}", f"{shown} {place}", f"{shown} {place}, {light}"))
    medium = pick(MEDIA)
    return _sentence(pick((where, f"{medium} of {where}", f"{medium} of {where}, {look}")))


def _subject(scene: Scene, pick: _Pick) -> str:
    """Compose a subject with its article, and with an adjective in three of four captions."""
    look, noun = pick(scene.looks), pick(scene.subjects)
    phrase = pick((noun, *[f"{look} {noun}"] * 3))
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
