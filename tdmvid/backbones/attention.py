"""The kernel that computes attention: chosen for a device, or checked if the user chose one."""

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
"""Names of `model.attention` in diffusers."""
HOPPER = (9, 0)
"""Compute capability from which cuDNN's kernels are ahead of FlashAttention-2 at every width."""


def check_attention(kernel: str, device: torch.device) -> None:
    """Check that this machine has what an attention kernel needs.

    Raises:
        ValueError: a kernel of a GPU without a CUDA device, or xformers not installed.
    """
    if kernel == "xformers" and (device.type != "cuda" or not importlib.util.find_spec("xformers")):
        raise ValueError(
            f"model.attention='xformers' needs a CUDA device (this is {device.type}) and the"
            " package: pip install -e '.[xformers]' in the clone, or choose 'sdpa'"
        )
    if kernel in ("cudnn", "flash") and device.type != "cuda":
        raise ValueError(
            f"model.attention={kernel!r} needs a CUDA device (this is {device.type}): choose 'auto'"
        )


def choose_attention(
    kernels: Sequence[str], device: torch.device, dtype: torch.dtype, *, kept: bool = False
) -> str:
    """Return the kernel for "auto": the first of a fixed order that works here, else "sdpa".

    cuDNN comes first from Hopper on, FlashAttention elsewhere, then xformers.

    Args:
        kernels: what the family can use.
        dtype: of the arithmetic; there is no choice in float32.
        kept: whether checkpointing keeps attention, which it can of PyTorch's kernels only.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return "sdpa"
    hopper = torch.cuda.get_device_capability(device) >= HOPPER
    order = ("cudnn", "flash", "xformers") if hopper else ("flash", "cudnn", "xformers")
    candidates = [k for k in order if k in kernels and not (kept and k == "xformers")]
    return next((k for k in candidates if _works(k, device, dtype)), "sdpa")


@lru_cache
def _works(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a small call and its backward pass run."""
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
