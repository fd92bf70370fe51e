"""The bytes of a block, eager and compiled, are those that its kernels read and write."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.compiled import Call, Moved, count_compiled, count_eager, measure


class Block(nn.Module):
    """Three elementwise kernels forward; and two backward, as what is added has none."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x):
        return nn.functional.gelu(x * 2) + 1


def test_a_compiler_fuses_what_eager_kernels_pass_on():
    x = torch.empty(64, 1024, requires_grad=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        eager = count_eager(
            Call(Block(), (torch.empty(64, 1024, requires_grad=True),), {}), x.dtype
        )
    assert eager == Moved(bytes=(2 + 2 + 2 + 3 + 2) * x.nbytes, kernels=5)
    compiled = count_compiled(Call(Block(), (x,), {}), x.dtype)
    # each way one: x to the output; x and a gradient to the gradient of x
    assert compiled == Moved(bytes=(2 + 3) * x.nbytes, kernels=2)


@pytest.mark.parametrize("change", ["model.dtype=float32", "model.dtype=bfloat16"])
def test_a_compiled_block_of_a_run_moves_fewer_bytes_with_fewer_kernels(tiny_run, tmp_path, change):
    (_, eager), (_, compiled) = measure(tiny_run(tmp_path, change))
    assert 0 < compiled.bytes < eager.bytes and 0 < compiled.kernels < eager.kernels
