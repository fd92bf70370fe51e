"""Thousands of varied captions of images and videos, made from words without a model.

    generated("videos", 5000)   # the first 5,000 captions of seed 0
    parse_name("images:20000")  # -> Generated("images", 20000, 0)

A caption is a function of (kind, seed, number) alone, on every machine and version of Python, so a
longer list begins with a shorter one.
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
"""Captions that a list may have."""
_NAME = re.compile(r"(images|videos):(\d{1,12})(?::(\d{1,12}))?")


@dataclass(frozen=True)
class Generated:
    """A generated list: its kind, length and seed."""

    kind: str
    count: int
    seed: int = 0

    def captions(self) -> Iterator[str]:
        """Yield the captions, each once.

        Raises:
            ValueError: If there are too many, or none.
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
    """Return the list that a name means, "videos:5000" or "videos:5000:7" with a seed; or None."""
    found = _NAME.fullmatch(name)
    return found and Generated(found[1], int(found[2]), int(found[3] or 0))


def _caption(kind: str, seed: int, number: int) -> str:
    """Return one caption."""
    pick = _picker(f"{kind} {seed} {number}")
    scene = pick(SCENES)
    return _video(scene, pick) if kind == "videos" else _image(scene, pick)


_Pick = Callable[[Sequence], Any]


def _picker(name: str) -> _Pick:
    """Return what picks one of some options, each time by other digits of the name's hash."""
    rest = int.from_bytes(hashlib.sha512(name.encode()).digest(), "big")

    def pick(options: Sequence) -> Any:
        nonlocal rest
        rest, index = divmod(rest, len(options))
        return options[index]

    return pick


def _video(scene: Scene, pick: _Pick) -> str:
    """A video's caption: who does what, where, in which light, how it is filmed."""
    subject, action = _subject(scene, pick), pick(scene.actions)
    happens = f"{subject} {action} {pick(scene.places)}"
    light, move, style = pick(LIGHTS), pick(MOVES), pick(VIDEO_STYLES)
    endings = ("", f", {light}", f", {move}", f", {light}, {move}", f", {style}, {move}")
    return _sentence(happens + pick(endings))


def _image(scene: Scene, pick: _Pick) -> str:
    """An image's caption: what, where, in which light, in which medium."""
    shown = f"{_subject(scene, pick)} {pick(scene.poses)}"
    place, light, look = pick(scene.places), pick(LIGHTS), pick(LOOKS_OF_IMAGES)
    where = pick((shown, f"{shown} {place}", f"{shown} {place}", f"{shown} {place}, {light}"))
    medium = pick(MEDIA)
    return _sentence(pick((where, f"{medium} of {where}", f"{medium} of {where}, {look}")))


def _subject(scene: Scene, pick: _Pick) -> str:
    """A subject with its article, and with an adjective in three of four captions."""
    look, noun = pick(scene.looks), pick(scene.subjects)
    phrase = pick((noun, *[f"{look} {noun}"] * 3))
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
