"""Randomness as a pure function of (seed, step, name, stream): a resume needs only the step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Streams:
    """Seeded generators for one run.

    A stream is one micro-batch of the global batch (data-parallel rank times accumulation
    plus micro-step), so two ranks draw what one rank draws in two micro-batches, and the
    ranks of one sequence-parallel group, sharing a stream, draw the same.
    """

    seed: int
    device: torch.device | str = "cpu"

    def generator(
        self, step: int, name: str, stream: int = 0, *, device: torch.device | str | None = None
    ) -> torch.Generator:
        """A fresh generator; leave `stream` at 0 for what all ranks must agree on."""
        text = f"{self.seed}/{step}/{name}/{stream}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
        return torch.Generator(device or self.device).manual_seed(seed)
