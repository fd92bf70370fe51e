"""DeepSpeed's checkpoint files: made in host memory, converted for another number of ranks, loaded.

The files are pickles, and the library loads them with `weights_only=False`: a foreign checkpoint
could run code. Here torch loads nothing from them but tensors, plain values and the classes in
`HELD`. Imported late, like the library itself (see launch.start).
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

from .engine import Files, naming
from .host_copies import to_host
from .launch import on_rank0

HELD = (LossScaler, ZeroStageEnum, fragment_address)
"""The classes that the library's own files hold; they run no code when they are loaded."""


class _HostMemory(TorchCheckpointEngine):
    """Keeps what the library saves instead of writing it."""

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


def load_shards(engine, folder: Path, tag: str, *, universal: bool) -> None:
    """Load the library's files of all ranks into its engine; collective.

    Args:
        folder: Of one role.
        tag: The folder of the files in there.
        universal: Whether they were converted by `make_universal`.

    Raises:
        ValueError: If a file holds more than data.
    """
    _check_data_only(folder / tag)
    # The library reads it from its configuration only.
    engine._config.load_universal_checkpoint = universal
    with naming(folder / tag), _data_only():
        engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)


def make_universal(shards: Path, universal: Path) -> None:
    """Convert the shards of ZeRO to a checkpoint that any number of ranks can load; rank 0 works,
    all wait. An earlier conversion is used if it is whole.

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

    on_rank0(convert)  # whole networks take long


def _sums(folder: Path) -> bytes:
    """The SHA-256 of every file of a conversion, as `sha256sum` lists them."""
    lines = []
    for path in sorted(folder.rglob("*.pt")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines).encode()


def _check_data_only(folder: Path) -> None:
    """Check on rank 0 what the files below a folder would build; all ranks raise alike."""

    def check() -> None:
        for path in sorted(folder.rglob("*.pt")):
            if refusal := _more_than_data(path):
                raise ValueError(f"{refusal}; resume a checkpoint of your own")

    on_rank0(check)


def _more_than_data(path: Path) -> str:
    """What speaks against a file, from its text alone: nothing in it is built or called."""
    with safe_globals(list(HELD)):
        try:
            foreign = get_unsafe_globals_in_checkpoint(path)
        except Exception as error:  # of pickle, zipfile and torch, each of its own kind
            reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            return f"{path} is no file of a DeepSpeed checkpoint ({reason})"
    if not foreign:
        return ""
    return f"{path} holds {min(foreign)[:80]}, which is no data and may run code: it is not loaded"


@contextmanager
def _data_only() -> Iterator[None]:
    """Make every torch.load inside, the library's own too, load data and `HELD` only."""
    force, never = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, never)}
    os.environ[force] = "1"
    try:
        with safe_globals(list(HELD)):
            yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})
