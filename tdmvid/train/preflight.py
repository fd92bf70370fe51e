"""What this machine must have for a run; checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch

from ..backbones.attention import check_attention
from ..backbones.quantize import check_torchao
from ..config import RunConfig
from ..parallel import launch


def check_machine(config: RunConfig, world: launch.World) -> None:
    """Check what a run needs of this machine and of the way it was started.

    Raises:
        ValueError: For what is missing.
    """
    check_attention(config.model.attention, world.device)
    if config.parallel.compile is True:
        check_compiler(world.device)
    if config.parallel.offload != "none" and not world.distributed:
        raise ValueError(
            f"parallel.offload={config.parallel.offload!r} without a launcher: it is DeepSpeed that"
            " moves weights to host memory; start with `torchrun -m tdmvid train ...`, or set it to"
            " 'none'"
        )
    if config.model.quantize != "none":
        check_torchao()


def check_compiler(device: torch.device) -> None:
    """Check what torch.compile needs.

    Raises:
        ValueError: If there is no triton for a GPU, or no compiler for a CPU.
    """
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise ValueError(
            "parallel.compile=true needs triton on a GPU: pip install triton, or set it to false"
        )
    # the one that torch.compile looks for
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"parallel.compile=true needs a C++ compiler on a CPU, and there is no {compiler!r}:"
            " install it, name yours in CXX, or set it to false"
        )
