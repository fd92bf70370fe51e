"""Real data for adversarial objectives: a folder of videos or images, encoded once.

Latents wait on disk as text embeddings do, in shards of the same cache; a file is known by its
folder, name, size and date, so a changed one is encoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import RealConfig
from ..diffusion.denoiser import Cond
from .embeddings import EmbeddingCache
from .video import IMAGES, VIDEOS, media_files, name_files, split_files

NAME = "latents"
PER_SHARD = 64
"""A clip's latents are megabytes where a prompt's embedding is less than one."""


def real_files(config: RealConfig, *, frames: int) -> list[Path]:
    """The videos, and where a clip is one frame the images, that are used; ValueError if there are
    none.
    """
    try:
        files = media_files(Path(config.path), _kinds(frames))
    except ValueError as error:
        raise ValueError(f"real.path={error}") from None
    return files[: config.limit] if config.limit else files


def note_unread(config: RealConfig, *, frames: int) -> str:
    """Return one line that counts and names the files of the folder that are not read, or ""."""
    folder = Path(config.path)
    files, others = split_files(folder, _kinds(frames))
    if not others:
        return ""
    return (
        f"real.path={config.path!r}: of {len(files) + len(others):,} files these are not read:"
        f" {name_files(folder, others)}; the kinds read are {', '.join(sorted(_kinds(frames)))}"
    )


def _kinds(frames: int) -> set[str]:
    return VIDEOS | IMAGES if frames == 1 else VIDEOS


class RealLatents:
    """The clips of a folder as latents, picked by uniform numbers; of images too where a clip is
    one frame.
    """

    def __init__(self, config: RealConfig, fingerprint: str, *, frames: int = 1):
        folder = Path(config.path)
        self.files = real_files(config, frames=frames)
        self.known = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in self.files]
        """What a resumed run must find again."""
        self._keys = [
            f"{folder.resolve()} {known} {path.stat().st_mtime_ns}"
            for known, path in zip(self.known, self.files)
        ]
        self.cache = EmbeddingCache(Path(config.cache), fingerprint)

    def encode(
        self,
        clip: Callable[[Path], Tensor],
        encoder: Callable[[Tensor], Tensor],
        *,
        share: int = 0,
        shares: int = 1,
        meet: Callable[[], None] = lambda: None,
        progress: bool = True,
    ) -> dict[Path, Exception]:
        """Encode one of `shares` shares of the clips, as far as the cache lacks them; returns the
        files that cannot be read, and why.

        clip: file -> [3, F, H, W]; encoder: [B, 3, F, H, W] -> [B, ...]; meet: called as often by
        every share, after each shard.
        """
        failed: dict[Path, Exception] = {}
        with tqdm(
            total=len(self.files[share::shares]),
            desc="encoding clips",
            unit="clip",
            disable=not progress,
        ) as bar:
            for first in range(0, len(self.files), PER_SHARD * shares):
                numbers = range(
                    first + share, min(first + PER_SHARD * shares, len(self.files)), shares
                )
                lacking = set(self.cache.missing(self._keys[number] for number in numbers))
                made = {}
                for number in numbers:
                    if self._keys[number] in lacking:
                        try:
                            latents = encoder(clip(self.files[number])[None])
                            if not latents.isfinite().all():
                                raise ValueError(
                                    f"{self.files[number]}: its latents are not finite, use another"
                                    " model.dtype"
                                )
                            made[self._keys[number]] = latents
                        except (ValueError, OSError) as error:
                            failed[self.files[number]] = error
                    bar.update()
                if made:
                    self.cache.add(list(made), Cond({NAME: torch.cat(list(made.values()))}))
                meet()
        return failed

    def missing(self, *, patience: float = 0.0) -> int:
        """How many clips the cache lacks, as this process sees it after at most `patience`
        seconds.
        """
        return len(self.cache.missing(self._keys, patience=patience))

    def __call__(self, pick: Tensor) -> Tensor:
        """[B] numbers in [0, 1) -> [B, ...], float32, on their device."""
        keys = [self._keys[index] for index in (pick * len(self._keys)).long().tolist()]
        return self.cache.get(keys)[NAME].to(pick.device).float()
