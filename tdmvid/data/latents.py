"""Real data for adversarial methods: a folder of videos or images, encoded once.

Latents are cached on disk in the same format as text embeddings. The key of a file is its folder,
name, size and modification time, so a changed file is encoded again.

Shapes: B is the batch size, F the number of frames, H the height and W the width in pixels.
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
from .files import check_writable
from .media_folders import IMAGES, VIDEOS, media_files, name_files, split_files

NAME = "latents"
PER_SHARD = 64
"""Clips per shard. Fewer than for prompts, because latents of a clip take several megabytes."""


def real_files(config: RealConfig, *, frames: int) -> list[Path]:
    """List the files of real data.

    Args:
        config: Settings of the real data.
        frames: Frames per sample; images are included only for 1.

    Returns:
        The files, sorted by name, at most `config.limit`.

    Raises:
        ValueError: If there are none.
    """
    try:
        files = media_files(Path(config.path), _kinds(frames))
    except ValueError as error:
        raise ValueError(f"real.path={error}") from None
    return files[: config.limit] if config.limit else files


def note_unread(config: RealConfig, *, frames: int) -> str:
    """Report the files of the folder that are not used because of their type.

    Args:
        config: Settings of the real data.
        frames: Frames per sample; images are used only for 1.

    Returns:
        One line with number and names, or "" if all files are used.
    """
    folder = Path(config.path)
    files, others = split_files(folder, _kinds(frames))
    if not others:
        return ""
    return (
        f"real.path={config.path!r}: of {len(files) + len(others):,} files these are not used:"
        f" {name_files(folder, others)}; supported types are {', '.join(sorted(_kinds(frames)))}"
    )


def _kinds(frames: int) -> set[str]:
    return VIDEOS | IMAGES if frames == 1 else VIDEOS


class RealLatents:
    """Latents of the clips in a folder, selected by uniform random numbers.

    Args:
        config: Settings of the real data.
        fingerprint: Name of the autoencoder and its settings; see `EmbeddingCache`.
        frames: Frames per sample; images are included only for 1.
    """

    def __init__(self, config: RealConfig, fingerprint: str, *, frames: int = 1):
        folder = Path(config.path)
        self.files = real_files(config, frames=frames)
        self.known = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in self.files]
        """Name and size of each file. A resumed run must find the same."""
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
        """Encode the clips of one share that are missing in the cache.

        Args:
            clip: Reads a file: path -> [3, F, H, W].
            encoder: Encodes clips: [B, 3, F, H, W] -> [B, ...].
            share: Index of the share.
            shares: Number of shares, e.g. of ranks.
            meet: Called after each shard, equally often by every share; synchronises ranks.
            progress: Whether to show a progress bar.

        Returns:
            Files that cannot be read or encoded, with the error.

        Raises:
            ValueError: If clips are missing and the cache cannot be written.
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
                if lacking:
                    check_writable(self.cache.folder, "real.cache")
                made = {}
                for number in numbers:
                    if self._keys[number] in lacking:
                        try:
                            latents = encoder(clip(self.files[number])[None])
                            if not latents.isfinite().all():
                                raise ValueError(
                                    f"{self.files[number]}: the latents are not finite: use another"
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
        """Count the clips that are missing in the cache.

        Args:
            patience: Seconds to wait for files that other machines have written.

        Returns:
            The number of missing clips.
        """
        return len(self.cache.missing(self._keys, patience=patience))

    def __call__(self, pick: Tensor) -> Tensor:
        """Look up latents.

        Args:
            pick: Uniform numbers in [0, 1) that select clips, [B].

        Returns:
            Latents on the device of `pick`, [B, ...] float32.
        """
        keys = [self._keys[index] for index in (pick * len(self._keys)).long().tolist()]
        return self.cache.get(keys)[NAME].to(pick.device).float()
