"""Programs that made what the package ships."""

from tdmvid.cli.openmp import sleep_between_kernels

sleep_between_kernels()  # here, because the programs import torch
