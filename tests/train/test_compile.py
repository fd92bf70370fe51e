"""Compiled blocks give the same gradients, are whole graphs, and are compiled once; they are
rejected where they cannot work.
"""

import os

import pytest
import torch
import torch._inductor.config
from refusals import refused
from torch._dynamo.utils import counters

from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.roles.build import compile_blocks
from tdmvid.roles.rules import check_settings
from tdmvid.train.preflight import check_compiler
from tdmvid.train.run import build_run

CPU = torch.device("cpu")


def gradients(run, role, *, rolled_out=True):
    """Return the gradients of one call with a nonzero adapter, after the gradient-free calls of an
    iteration.
    """
    engine, network = run.engines[role], getattr(run.roles, role)
    for index, parameter in enumerate(engine.trainable.values()):
        parameter.data = 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(index)
        )
    x, t = (
        torch.randn(1, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0)),
        torch.full((1,), 0.5),
    )
    with torch.no_grad():
        for denoiser in (network, run.roles.teacher) if rolled_out else ():
            denoiser(x, t, run.null)
    return torch.autograd.grad(
        network(x, t, run.null).square().sum(), list(engine.trainable.values())
    )


def assert_same(found, expected):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
        assert b.abs().sum() > 0


@pytest.fixture
def plain(tiny_run, tmp_path):
    torch._dynamo.reset()
    counters.clear()
    return build_run(tiny_run(tmp_path, "objective.cfg=3"), launch.start("none"))


@pytest.mark.slow
def test_blocks_are_whole_graphs_that_are_compiled_once(plain):
    roles = ("student", "fake")
    expected = {role: gradients(plain, role) for role in roles}
    for role in roles:
        compile_blocks(plain.backbone.spec.blocks(plain.engines[role].module), backend="aot_eager")
        assert_same(gradients(plain, role), expected[role])
    graphs = counters["stats"]["unique_graphs"]
    for role in roles:
        assert_same(gradients(plain, role), expected[role])
    assert 0 < graphs == counters["stats"]["unique_graphs"] and not counters["graph_break"]


class Block(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = torch.nn.Linear(width, width)

    def forward(self, x):
        return self.inner(x).relu()


@torch._dynamo.config.patch(recompile_limit=2)
@pytest.mark.slow
def test_blocks_of_many_shapes_are_all_compiled():
    """A UNet's blocks share one cache with limited size."""
    torch._dynamo.reset()
    counters.clear()
    blocks = [Block(width) for width in range(1, 12)]
    compile_blocks(blocks, backend="aot_eager")
    for block in blocks:
        for call in (torch.no_grad, torch.enable_grad):
            with call():
                block(torch.ones(1, block.inner.in_features))
    assert counters["stats"]["unique_graphs"] == 2 * len(blocks)


@pytest.mark.slow
def test_a_compiled_run_has_the_gradients_of_a_plain_one(plain, tiny_run, tmp_path):
    compiled = build_run(
        tiny_run(tmp_path, "objective.cfg=3", "parallel.compile=true"), launch.start("none")
    )
    assert compiled.engines["student"].trainable.keys() == plain.engines["student"].trainable.keys()
    assert_same(
        gradients(compiled, "student", rolled_out=False),
        gradients(plain, "student", rolled_out=False),
    )
    assert counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize(
    "device, facts",
    [
        (CPU, ("'no-such-compiler'", "CXX")),
        (torch.device("cuda"), ("triton", "pip install triton")),
    ],
)
def test_a_machine_that_cannot_compile_is_refused(device, facts, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused("parallel.compile=true", *facts):
        check_compiler(device)


@pytest.mark.skipif(
    "CXX" in os.environ, reason="CXX is set, which torch.compile reads when it is imported"
)
def test_the_compiler_that_is_looked_for_is_the_one_that_is_used(tmp_path, monkeypatch):
    """Another compiler on the machine does not help."""
    for name in ("clang++", "g++"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    used = torch._inductor.config.cpp.cxx[-1]
    check_compiler(CPU)
    (tmp_path / used).unlink()
    with refused(f"{used!r}"):
        check_compiler(CPU)


def test_sharded_weights_are_not_compiled_nor_planned_so(tiny_run, tmp_path):
    config = tiny_run(tmp_path, "parallel.compile=true")
    facts = ("parallel.compile=true", "parallel.zero_stage=3")
    with refused(*facts):
        check_settings(config, distributed=True)
    with refused(*facts):
        make_plan(config, ranks=2)
    alone = make_plan(config)
    sharded = tiny_run(tmp_path, "parallel.compile=true", "parallel.zero_stage=2")
    make_plan(sharded, ranks=2, like=alone)
