"""Save and load the trajectories of a streaming rollout: one file per micro-batch of all ranks."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save

from ..parallel.engine import naming
from .run import Run


def save_stream(run: Run) -> dict[str, bytes]:
    """Serialize the trajectories of this rank.

    Args:
        run: The run.

    Returns:
        Contents by file name; empty without streaming, and on all but the first rank of a
        sequence-parallel group.
    """
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
    """Restore the trajectories of a checkpoint, which may have been written by another number of
    ranks.

    Args:
        run: The run.
        folder: Folder of the checkpoint.

    Raises:
        ValueError: A file is missing, or contains other trajectories than this run has.
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
