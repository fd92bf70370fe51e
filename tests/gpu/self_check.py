"""Small programs that each do one thing that a GPU should not do, to test the counter itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import collectives
import counting
import torch
import torch.distributed as dist
import torch.nn.functional as nnf


def _heads(dtype: torch.dtype = torch.bfloat16, width: int = 64) -> torch.Tensor:
    return torch.ones(1, 2, 16, width, dtype=dtype, device="cuda")


def unequal() -> None:
    with torch.autocast("cuda", torch.bfloat16):
        nnf.scaled_dot_product_attention(_heads(torch.float32), _heads(), _heads())


def masked() -> None:
    nnf.scaled_dot_product_attention(_heads(), _heads(), _heads(), attn_mask=_heads()[..., :16])


def slow() -> None:
    nnf.scaled_dot_product_attention(
        _heads(torch.float32), _heads(torch.float32), _heads(torch.float32)
    )


def waiting() -> None:
    torch.ones(3, device="cuda").tolist()
    float(torch.ones((), device="cuda"))


def copying() -> None:
    torch.ones(3, device="cuda").to("cpu")
    torch.ones(3).to("cuda")
    torch.ones(3).to("cuda", non_blocking=True)
    torch.tensor([1.0, 2.0], device="cuda")


def doubled() -> None:
    torch.ones(1000, device="cuda").double()


def mixed() -> None:
    torch.ones(3, device="cuda") + torch.ones(3)


def sending() -> None:
    """Three quarters of 12 bytes, and twice as much in a ring."""
    with collectives.ranks(4):
        x = torch.ones(3, device="cuda")
        dist.all_to_all_single(torch.empty_like(x), x)
        dist.all_reduce(x)


def elementwise() -> None:
    """1 MB is written, then read and written; then a graph keeps 1 MB while 2 more are created."""
    x = torch.zeros(250_000, device="cuda")
    y = x.requires_grad_() * 2
    del x
    y.exp().sum().backward()


def into_place() -> None:
    """Write 1 MB; then read it and write 1 MB into an existing tensor."""
    x = torch.zeros(250_000, device="cuda")
    torch.mul(x, 2, out=torch.empty_like(x))


def activated() -> None:
    nnf.silu(torch.ones(3, device="cuda").requires_grad_()).sum().backward()


def normed() -> None:
    """Forward and backward of an RMS norm with a frozen weight."""
    x = torch.ones(3, 250_000, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.ones(250_000, dtype=torch.bfloat16, device="cuda")
    out = nnf.rms_norm(x, (250_000,), weight)
    out.backward(torch.ones_like(out))


def _counted(program: Callable[[], None]) -> dict[str, Any]:
    with counting.device() as counter:
        try:
            program()
        except RuntimeError as error:
            return {"error": str(error)}
        return counter.counts.as_dict() | {"error": None, "live": counter.live}


FAULTS = {
    program.__name__: lambda program=program: _counted(program)
    for program in (
        *(unequal, masked, slow, waiting, copying, doubled, mixed, sending, elementwise),
        *(into_place, activated, normed),
    )
}
