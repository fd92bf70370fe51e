"""Programs that created the data in the package."""

from tdmvid.cli.openmp import sleep_between_kernels

sleep_between_kernels()  # must run before the programs import torch
