"""Programs that measure speed and memory."""

from tdmvid.cli.allocator import expand_segments
from tdmvid.cli.openmp import sleep_between_kernels

sleep_between_kernels()  # here, because the programs import torch
expand_segments()
