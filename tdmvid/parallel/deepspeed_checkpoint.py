"""DeepSpeed checkpoints: write to host memory, convert to another number of ranks, and load.

The files are pickles, and DeepSpeed loads them with `weights_only=False`, so an untrusted
checkpoint could run code. Here torch loads only tensors, plain values and the classes in `HELD`.
Import this module late, like DeepSpeed itself (see launch.start).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from .collectives import on_rank0
from .engine import Files, naming
from .host_copies import to_host

HELD = (LossScaler, ZeroStageEnum, fragment_address)
"""Classes in DeepSpeed's own files. Loading them runs no code."""


class _HostMemory(TorchCheckpointEngine):
    """Checkpoint engine that keeps files in memory instead of writing them."""

    def __init__(self):
        super().__init__()
        self.files: dict[str, memoryview] = {}

    def makedirs(self, path, exist_ok=False):
        pass

    def save(self, state_dict, path):
        data = io.BytesIO()
        torch.save(to_host(state_dict), data)
        self.files[path] = data.getbuffer()


def in_memory(engine, tag: str) -> Files:
    """Return the files that `engine.save_checkpoint` would write on this rank. Collective.

    Args:
        engine: DeepSpeed engine.
        tag: Folder of the files.

    Returns:
        Contents by relative path.
    """
    usual, engine.checkpoint_engine = engine.checkpoint_engine, _HostMemory()
    try:
        with (
            TemporaryDirectory() as folder
        ):  # for the scripts that DeepSpeed copies next to its files
            engine.save_checkpoint(
                folder, tag=tag, save_latest=False, exclude_frozen_parameters=True
            )
            return {
                str(Path(path).relative_to(folder)): data
                for path, data in engine.checkpoint_engine.files.items()
            }
    finally:
        engine.checkpoint_engine = usual


def load_shards(engine, folder: Path, tag: str, *, universal: bool) -> None:
    """Load the DeepSpeed files of all ranks into an engine. Collective.

    Args:
        engine: DeepSpeed engine.
        folder: Checkpoint folder of one role.
        tag: Subfolder of the files.
        universal: Whether the files were converted by `make_universal`.

    Raises:
        ValueError: If a file holds more than data.
    """
    _check_data_only(folder / tag)
    # DeepSpeed reads this only from its configuration.
    engine._config.load_universal_checkpoint = universal
    with naming(folder / tag), _data_only():
        engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)


def make_universal(shards: Path, universal: Path) -> None:
    """Convert ZeRO shards to a checkpoint that any number of ranks can load. Collective.

    Rank 0 converts and the other ranks wait. A complete earlier conversion is reused.

    Args:
        shards: Folder of the ZeRO shards.
        universal: Folder for the converted checkpoint.

    Raises:
        ValueError: If a file holds more than data.
    """
    _check_data_only(shards)
    done = universal / "done"

    def convert() -> None:
        if done.exists() and done.read_bytes() == _sums(universal):
            return
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
        with naming(shards), redirect_stdout(io.StringIO()), _data_only():
            ds_to_universal.main(options)
        done.write_bytes(_sums(universal))

    on_rank0(convert)  # may take longer than the timeout for whole networks


def _sums(folder: Path) -> bytes:
    """Return the SHA-256 of every converted file, in the format of `sha256sum`."""
    lines = []
    for path in sorted(folder.rglob("*.pt")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines).encode()


def _check_data_only(folder: Path) -> None:
    """Check on rank 0 that files hold only data; raise the same error on all ranks."""

    def check() -> None:
        for path in sorted(folder.rglob("*.pt")):
            if refusal := _more_than_data(path):
                raise ValueError(f"{refusal}: resume from a checkpoint that you wrote")

    on_rank0(check)


def _more_than_data(path: Path) -> str:
    """Return why a file must not be loaded, or "". Parses the file without running its code."""
    with safe_globals(list(HELD)):
        try:
            foreign = get_unsafe_globals_in_checkpoint(path)
        except Exception as error:  # pickle, zipfile and torch raise errors of different types
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            return f"{path} is not a DeepSpeed checkpoint file ({reason})"
    if not foreign:
        return ""
    return f"{path} was not loaded because it contains {min(foreign)[:80]}, which may run code"


@contextmanager
def _data_only() -> Iterator[None]:
    """Limit every torch.load inside, including DeepSpeed's, to data and the classes in `HELD`."""
    force, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, never)}
    os.environ[force] = "1"
    try:
        with safe_globals(list(HELD)):
            yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})
