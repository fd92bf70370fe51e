"""Select the attention kernel for a device, or check the kernel that the user chose."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

BACKENDS = {
    "sdpa": AttentionBackendName.NATIVE,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "xformers": AttentionBackendName.XFORMERS,
}
"""Value of `model.attention` -> name of the backend in diffusers."""
HOPPER = (9, 0)
"""Compute capability from which cuDNN's kernels beat FlashAttention-2 at every head width."""


def check_attention(kernel: str, device: torch.device) -> None:
    """Check that this machine supports an attention kernel.

    Args:
        kernel: A value of `model.attention`.
        device: Where the network runs.

    Raises:
        ValueError: The kernel needs a CUDA device and there is none, or xformers is not installed.
    """
    if kernel in ("cudnn", "flash", "xformers") and device.type != "cuda":
        raise ValueError(
            f"model.attention={kernel!r} needs a CUDA device (this is {device.type}): use 'auto'"
        )
    if kernel == "xformers" and not importlib.util.find_spec("xformers"):
        raise ValueError(
            "model.attention='xformers' needs the xformers package: run pip install -e"
            " '.[xformers]' in the clone, or use 'auto'"
        )


def choose_attention(
    kernels: Sequence[str], device: torch.device, dtype: torch.dtype, *, kept: bool = False
) -> str:
    """Return the kernel for "auto": the first one that works on this device, else "sdpa".

    From Hopper on, cuDNN comes before FlashAttention; on older GPUs FlashAttention comes first.
    xformers comes last. CPUs and float32 always use "sdpa".

    Args:
        kernels: Kernels that the family supports.
        device: Where the network runs.
        dtype: Dtype of the activations.
        kept: Whether checkpointing keeps attention outputs, which excludes xformers.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return "sdpa"
    hopper = torch.cuda.get_device_capability(device) >= HOPPER
    order = ("cudnn", "flash", "xformers") if hopper else ("flash", "cudnn", "xformers")
    candidates = [k for k in order if k in kernels and not (kept and k == "xformers")]
    return next((k for k in candidates if _works(k, device, dtype)), "sdpa")


@lru_cache
def _works(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a small forward and backward pass run with this kernel."""
    if kernel == "cudnn" and not torch.backends.cudnn.is_available():
        return False
    if kernel == "xformers" and not importlib.util.find_spec("xformers"):
        return False
    x = torch.zeros(1, 128, 2, 64, device=device, dtype=dtype, requires_grad=True)
    try:
        with torch.enable_grad():
            out = dispatch_attention_fn(x, x, x, backend=BACKENDS[kernel])
            torch.autograd.grad(out.sum(), x)
    except (RuntimeError, ValueError, ImportError, AttributeError):
        return False
    return True
