"""DeepSpeed's checkpoint files: made in host memory, and converted for another number of ranks.

Imported late, like the library itself (see launch.start).
"""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from .engine import Files
from .launch import first_alone


class _HostMemory(TorchCheckpointEngine):
    """Keeps what the library saves instead of writing it."""

    def __init__(self):
        super().__init__()
        self.files: dict[str, memoryview] = {}

    def makedirs(self, path, exist_ok=False):
        pass

    def save(self, state_dict, path):
        data = io.BytesIO()
        torch.save(state_dict, data)
        self.files[path] = data.getbuffer()


def in_memory(engine, tag: str) -> Files:
    """What `engine.save_checkpoint` would write on this rank, by path; collective."""
    usual, engine.checkpoint_engine = engine.checkpoint_engine, _HostMemory()
    try:
        with (
            TemporaryDirectory() as folder
        ):  # for the scripts that the library copies beside its files
            engine.save_checkpoint(
                folder, tag=tag, save_latest=False, exclude_frozen_parameters=True
            )
            return {
                str(Path(path).relative_to(folder)): data
                for path, data in engine.checkpoint_engine.files.items()
            }
    finally:
        engine.checkpoint_engine = usual


def make_universal(shards: Path, universal: Path) -> None:
    """Convert the shards of ZeRO to a checkpoint that any number of ranks can load; rank 0 works,
    all wait.
    """
    done = universal / "done"
    with first_alone():  # whole networks take long
        if dist.get_rank() == 0 and not done.exists():
            shutil.rmtree(universal, ignore_errors=True)
            options = Namespace(
                input_folder=str(shards),
                output_folder=str(universal),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
            with redirect_stdout(io.StringIO()):
                ds_to_universal.main(options)
            done.touch()
