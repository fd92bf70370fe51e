"""Random generators as a pure function of (seed, step, name, stream).

To resume, a run only needs the step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Streams:
    """Seeded generators of a run.

    A stream is one micro-batch of the global batch: data-parallel rank x accumulation + micro-step.
    Two ranks therefore draw the same numbers as one rank with two micro-batches. The ranks of a
    sequence-parallel group share a stream and draw the same numbers.
    """

    seed: int
    """Seed of the run."""
    device: torch.device | str = "cpu"
    """Default device of the generators."""

    def generator(
        self, step: int, name: str, stream: int = 0, *, device: torch.device | str | None = None
    ) -> torch.Generator:
        """Make a generator.

        Args:
            step: Iteration.
            name: Purpose of the random numbers.
            stream: Index of the micro-batch in the global batch. Use 0 for numbers that must be the
                same on all ranks.
            device: Device of the generator; None uses the default.

        Returns:
            A new generator, which depends only on the arguments and the seed.
        """
        text = f"{self.seed}/{step}/{name}/{stream}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
        return torch.Generator(device or self.device).manual_seed(seed)
