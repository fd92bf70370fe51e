"""Look up the conditioning of items in two caches: prompts by text, images by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..diffusion.denoiser import Cond
from .embeddings import EmbeddingCache
from .items import Item

BLANK = "blank"
"""Cache key of the blank image."""


@dataclass(frozen=True)
class Conditions:
    """Cached conditioning of prompts and images."""

    texts: EmbeddingCache
    """Embeddings of prompts."""
    images: EmbeddingCache | None = None
    """Conditioning of images; None for a model without image input."""
    digests: Mapping[Path, str] = field(default_factory=dict)
    """Image file -> hash of its content, the key in the cache."""

    def get(self, items: Sequence[Item]) -> Cond:
        """Look up the conditioning of items.

        Args:
            items: Prompts, with images if the model takes them.

        Returns:
            Conditioning with tensors [len(items), ...] on the CPU.

        Raises:
            ValueError: If an entry is missing or damaged.
        """
        cond = self.of_prompts([item.prompt for item in items])
        if self.images is None:
            return cond
        return cond.replaced_by(self.images.get([self._key(item) for item in items]))

    def of_prompts(self, prompts: Sequence[str]) -> Cond:
        """Look up the conditioning of prompts without images, e.g. of a negative prompt.

        Args:
            prompts: The prompts.

        Returns:
            Conditioning with tensors [len(prompts), ...] on the CPU.

        Raises:
            ValueError: If an entry is missing or damaged.
        """
        return self.texts.get(list(prompts))

    def blank(self) -> Cond:
        """Look up the conditioning of the empty prompt, with a blank image if the model needs one.

        Returns:
            Conditioning with tensors [1, ...] on the CPU.
        """
        cond = self.of_prompts([""])
        return cond.replaced_by(self.images.get([BLANK])) if self.images else cond

    def describe(self, items: Sequence[Item]) -> list[str]:
        """Describe items by prompt and by the content of their images.

        Args:
            items: The items.

        Returns:
            One line per item.
        """
        if self.images is None:
            return [item.prompt for item in items]
        return [f"{self._key(item)} {item.prompt}" for item in items]

    def _key(self, item: Item) -> str:
        assert item.image is not None, "this model takes images"
        return self.digests[item.image]
