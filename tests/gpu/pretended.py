"""A CUDA device that computes nothing, for a CPU build of PyTorch.

Call `load` before importing torch, and `pretend` after importing all libraries. Within
`FakeTensorMode` tensors are then on "cuda:0": autocast, attention and autograd follow CUDA's rules,
and a `Counter` sees every kernel.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

SOURCE = Path(__file__).with_name("device.cpp")
MEMORY = 140 * 2**30


def compiler() -> str | None:
    """Return the path of a C++ compiler; None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))


def load() -> None:
    """Compile the device, unless an earlier run has, and load it. torch must not have been imported
    yet.
    """
    spec = importlib.util.find_spec("torch")
    assert spec and spec.submodule_search_locations
    torch = Path(spec.submodule_search_locations[0])
    key = SOURCE.read_bytes() + f"{importlib.metadata.version('torch')} {torch}".encode()
    name = f"tdmvid-pretended-cuda-{os.getuid()}-{hashlib.sha256(key).hexdigest()[:16]}.so"
    library = Path(tempfile.gettempdir()) / name
    if not library.exists():
        _compile(torch, library)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _compile(torch: Path, library: Path) -> None:
    command = compiler()
    assert command, "no g++ here"
    part = library.with_suffix(f".{os.getpid()}")
    headers = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    options = ["-O0", "-std=c++20", "-shared", "-fPIC"]
    subprocess.run(
        [command, *options, *headers, str(SOURCE), *libraries, "-o", str(part)], check=True
    )
    part.replace(library)


PROPERTIES = SimpleNamespace(
    name="Pretended H200",
    major=9,
    minor=0,
    total_memory=MEMORY,
    multi_processor_count=132,
    gcnArchName="",
    warp_size=32,
)


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _replacements() -> dict[str, Any]:
    """Return replacements of `torch.cuda` functions."""
    import torch

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": _nothing,
        "_lazy_call": _nothing,  # seeds, chiefly
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _nothing,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "empty_cache": _nothing,
        "reset_peak_memory_stats": _nothing,
        "get_rng_state": lambda device="cuda": torch.empty(16, dtype=torch.uint8),
        "set_rng_state": _nothing,
        "manual_seed_all": _nothing,
    }


def _own(function: Any) -> Any:
    return lambda *args, **options: function(*args, **options)


@contextmanager
def pretend() -> Iterator[None]:
    """Make `torch.cuda` report one device within this context."""
    import torch

    with ExitStack() as stack:
        for name, value in _replacements().items():
            # one function each, because Dynamo's tables take no function twice
            stack.enter_context(patch.object(torch.cuda, name, _own(value)))
        yield
