"""Real data for adversarial objectives: a folder of videos or images, encoded once.

Latents wait on disk as text embeddings do, in shards of the same cache; a file is known by its
path, size and date, so a changed one is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.denoiser import Cond
from .embeddings import EmbeddingCache, embed_prompts
from .video import media_files

NAME = "latents"
PER_SHARD = 64
"""A clip's latents are megabytes where a prompt's embedding is less than one."""


@dataclass(frozen=True)
class RealConfig:
    """Real videos or images, for kinds that compare with them."""

    path: str = ""
    """A folder, read with all its subfolders. No captions are needed."""
    cache: str = "cache/latents"
    limit: int = 0
    """Use only the first so many files; 0 uses all."""

    def __post_init__(self):
        if self.limit < 0:
            raise ValueError(f"real.limit={self.limit}: a number of files; 0 uses all")


class RealLatents:
    """The clips of a folder as latents, picked by uniform numbers."""

    def __init__(self, config: RealConfig, fingerprint: str):
        files = media_files(Path(config.path))
        self.files = files[: config.limit] if config.limit else files
        self.names = [f"{path.relative_to(config.path)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in self.files]
        self.cache = EmbeddingCache(Path(config.cache), fingerprint)

    def encode(self, clip: Callable[[Path], Tensor], encoder: Callable[[Tensor], Tensor], *, share: int = 0, shares: int = 1, progress: bool = True) -> None:
        """Encode this rank's share of what the cache lacks; clip: file -> [3, F, H, W], encoder: [B, 3, F, H, W] -> [B, ...]."""
        paths = dict(zip(self.names, self.files))

        def latents(names: list[str]) -> Cond:
            return Cond({NAME: encoder(torch.stack([clip(paths[name]) for name in names]))})

        embed_prompts(self.cache, self.names[share::shares], latents, batch=4, per_shard=PER_SHARD, unit="clip", progress=progress)

    def __call__(self, pick: Tensor) -> Tensor:
        """[B] numbers in [0, 1) -> [B, ...], float32, on their device."""
        return self.cache.get([self.names[int(index)] for index in pick * len(self.names)])[NAME].to(pick.device).float()
