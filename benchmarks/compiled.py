"""Bytes that a block's elementwise kernels move, eager and by the compiler's own estimate.

    python -m benchmarks.compiled --config cogvideox2b_4nfe
    python -m benchmarks.compiled --config wan14b_4nfe --set batch.micro=2

One block of a large model with its adapters, at the run's own size, forward and backward. Needs no
GPU: nothing is computed. Eager kernels are counted as a plan counts them. Compiled: Inductor lowers
the block's graphs and decides by its rules for Triton what it fuses; counted are the bytes that it
expects its own kernels to read and write. Matrix products and attention, which are the library's in
both, are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._functorch import config as autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import config as inductor
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.stopwatch import table
from tdmvid.backbones.dtype import torch_dtype
from tdmvid.backbones.registry import find_family
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.parallel.arithmetic import autocast
from tdmvid.plan.cost import Kernels, materialise
from tdmvid.plan.counts import outline_networks
from tdmvid.plan.gpu_dtypes import GpuAutocast


@dataclass
class Moved:
    """What one block does, forward and backward."""

    bytes: int = 0
    """Read and written by elementwise kernels."""
    kernels: int = 0
    """Of all kinds."""


class _Stop(Exception):
    """What was to be seen was seen."""


@dataclass(frozen=True)
class Call:
    """A block, and what the network calls it with."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def over(self, new: Callable[[Tensor], Tensor]) -> Call:
        """The same on other tensors."""
        args, kwargs = tree_map_only(Tensor, new, (self.args, self.kwargs))
        return Call(self.block, args, kwargs)

    def run(self) -> list[Tensor]:
        """Outputs that have a gradient."""
        return [x for x in tree_leaves(self.block(*self.args, **self.kwargs)) if x.requires_grad]


def called(network: nn.Module, block: nn.Module, inputs: dict[str, Any]) -> Call:
    """What a network calls one of its blocks with."""
    seen: list[Call] = []

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(Call(block, args, kwargs))
        raise _Stop

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    with contextlib.suppress(_Stop):
        network(**inputs, return_dict=False)
    handle.remove()
    return seen[0]


def count_eager(call: Call, dtype: torch.dtype) -> Moved:
    """Count kernels as PyTorch starts them."""
    call = call.over(lambda x: x.detach().requires_grad_(x.requires_grad))
    kernels = Kernels()
    with kernels, autocast(call.block, dtype), GpuAutocast():
        out = call.run()
    gradients = [torch.empty_like(x) for x in out]
    with kernels:
        torch.autograd.backward(out, gradients)
    return Moved(kernels.moved, kernels.count)


def count_compiled(call: Call, dtype: torch.dtype) -> Moved:
    """Count kernels as Inductor would write them for Triton."""
    moved = Moved()

    def note(graph: GraphLowering) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        for node in graph.scheduler.nodes:
            moved.kernels += not isinstance(node, NopKernelSchedulerNode)
            if not isinstance(node, ExternKernelSchedulerNode | NopKernelSchedulerNode):
                moved.bytes += node.get_read_write_buffers_sizes()
        raise _Stop

    def lower(module: Any, inputs: Any, **options: Any) -> Any:
        before = moved.kernels
        try:
            compile_fx_inner(module, inputs, **options)
        except Exception:  # the compiler's own, around ours
            if moved.kernels == before:
                raise
        return make_boxed_func(_stop)

    def backend(module: Any, inputs: Any) -> Any:
        return compile_fx(module, inputs, inner_compile=lower)

    torch._dynamo.reset()
    call.block.compile(backend=backend, dynamic=False)
    settings = inductor.patch({"cpu_backend": "triton", "force_disable_caches": True})
    # otherwise the backward graph is lowered at the first backward pass, which does not come
    both = autograd.patch({"force_non_lazy_backward_lowering": True})
    noting = patch.object(GraphLowering, "codegen", note)
    with settings, both, noting, contextlib.suppress(_Stop), autocast(call.block, dtype):
        call.run()
    return moved


def _stop(*_: Any) -> None:
    raise _Stop


def _reserved(x: Tensor) -> Tensor:
    """Memory that nobody touches."""
    made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    return made.requires_grad_(x.requires_grad)


def measure(config: RunConfig) -> list[tuple[str, Moved]]:
    """Count the second block of a run's student both ways."""
    folder, family = find_family(config.model, weights=False)
    network, dtype = outline_networks(config, folder, family).network, torch_dtype(config.model)
    block = family.spec.blocks(network)[1]
    plain = copy.deepcopy(block).to_empty(device="cpu")
    with FakeTensorMode():
        materialise(network)
        inputs = family.spec.example(network, folder, config.video, config.batch.micro, dtype)
        with autocast(network, dtype), GpuAutocast():
            call = called(network, block, inputs)
        eager = count_eager(call, dtype)
    compiled = count_compiled(Call(plain, call.args, call.kwargs).over(_reserved), dtype)
    return [("eager", eager), ("compiled", compiled)]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["cogvideox2b_4nfe"])
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    args = parser.parse_args()
    rows: list[list[object]] = []
    for name in args.config:
        found = measure(load_config(name, args.set))
        eager = found[0][1]
        rows += [
            [name, way, f"{m.bytes / 1e9:.2f}", m.kernels, f"{m.bytes / eager.bytes:.0%}"]
            for way, m in found
        ]
    print(table(["config", "block", "GB", "kernels", "of eager"], rows))


if __name__ == "__main__":
    run_program(main)
