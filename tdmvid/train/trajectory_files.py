"""Files of trajectories that go on: in a checkpoint, one for each micro-batch of all ranks."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save

from ..parallel.engine import naming
from .run import Run


def save_stream(run: Run) -> dict[str, bytes]:
    """Return this rank's files by name; of the ranks that share a sequence, the first has them."""
    group = run.world.sequence
    if run.stream is None or (group is not None and group.rank):
        return {}
    return {
        _name(run.stream.first_stream + micro): save(
            {name: tensor.contiguous() for name, tensor in run.stream.tensors(micro).items()}
        )
        for micro in range(len(run.stream.states))
    }


def load_stream(run: Run, folder: Path) -> None:
    """Go on with the trajectories of a checkpoint; another number of ranks may have written it.

    Raises:
        ValueError: If a file is missing, or holds other trajectories than this run has.
    """
    if run.stream is None:
        return
    found = []
    for micro in range(run.config.batch.accumulation):
        with naming(folder / _name(run.stream.first_stream + micro)) as path:
            found.append(load_file(path))
    with naming(folder):
        run.stream.restore(found)


def _name(number: int) -> str:
    return f"trajectories_{number:05d}.safetensors"
