"""Programs that measure speed and memory."""

from tdmvid.cli.allocator import expand_segments
from tdmvid.cli.openmp import sleep_between_kernels

sleep_between_kernels()  # must run before the programs import torch
expand_segments()
