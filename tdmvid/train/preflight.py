"""Check what a run needs of this machine before anything is loaded."""

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
from .tracker import check_tracker


def check_machine(config: RunConfig, world: launch.World) -> None:
    """Check what a run needs of this machine and of the way it was launched.

    Args:
        config: Settings of the run.
        world: Processes of the run.

    Raises:
        ValueError: Something is missing.
    """
    check_attention(config.model.attention, world.device)
    check_tracker(config.log.tracker)
    if config.parallel.compile is True:
        check_compiler(world.device)
    if config.parallel.offload != "none" and not world.distributed:
        raise ValueError(
            f"parallel.offload={config.parallel.offload!r} needs a launcher, because DeepSpeed does"
            " the offloading: start with `torchrun -m tdmvid train ...`, or set it to 'none'"
        )
    if config.model.quantize != "none":
        check_torchao()


def check_compiler(device: torch.device) -> None:
    """Check what torch.compile needs.

    Args:
        device: Device of the run.

    Raises:
        ValueError: Triton is missing on a GPU, or a C++ compiler on a CPU.
    """
    if device.type == "cuda" and not importlib.util.find_spec("triton"):
        raise ValueError(
            "parallel.compile=true needs triton on a GPU: run `pip install triton`, or set it to"
            " false"
        )
    # the compiler that torch.compile looks for
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"parallel.compile=true needs a C++ compiler on a CPU, but {compiler!r} was not found:"
            " install it, set CXX to your compiler, or set parallel.compile to false"
        )
