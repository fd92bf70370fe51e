"""The conditions of items from two caches: of prompts by their text, of images by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..diffusion.denoiser import Cond
from .embeddings import EmbeddingCache
from .items import Item

BLANK = "blank"
"""The key of the image that tells nothing, in place of a digest."""


@dataclass(frozen=True)
class Conditions:
    """Cached conditions; `images` is None for a model that takes none."""

    texts: EmbeddingCache
    images: EmbeddingCache | None = None
    digests: Mapping[Path, str] = field(default_factory=dict)
    """Of the content of every image file: its key in the cache."""

    def get(self, items: Sequence[Item]) -> Cond:
        """Return the conditions of items, one row each, on the CPU.

        Raises:
            ValueError: one is missing or damaged.
        """
        cond = self.of_prompts([item.prompt for item in items])
        if self.images is None:
            return cond
        return cond.replaced_by(self.images.get([self._key(item) for item in items]))

    def of_prompts(self, prompts: Sequence[str]) -> Cond:
        """Return the conditions of prompts alone: what guidance leads away from."""
        return self.texts.get(list(prompts))

    def blank(self) -> Cond:
        """Return the condition without a prompt, and with a blank image where there must be one."""
        cond = self.of_prompts([""])
        return cond.replaced_by(self.images.get([BLANK])) if self.images else cond

    def describe(self, items: Sequence[Item]) -> list[str]:
        """Return a line for each item, by its text and the content of its image."""
        if self.images is None:
            return [item.prompt for item in items]
        return [f"{self._key(item)} {item.prompt}" for item in items]

    def _key(self, item: Item) -> str:
        assert item.image is not None, "this model takes images"
        return self.digests[item.image]
