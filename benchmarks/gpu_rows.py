"""What `benchmarks.gpu` measures, one function a job: each yields rows as they are done."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.iteration import steps_of_extreme_k
from benchmarks.large import measure, planned_peak, shares, with_calls
from benchmarks.stopwatch import seconds
from benchmarks.untrained import Stage, random_backbone, shortened, stage_of, text_like
from tdmvid.backbones.attention import BACKENDS, check_attention
from tdmvid.backbones.dtype import torch_dtype
from tdmvid.config import RunConfig, load_config
from tdmvid.diffusion.sampler import sample
from tdmvid.parallel import launch
from tdmvid.parallel.launch import free_port
from tdmvid.plan.make import make_plan
from tdmvid.plan.plan import Plan
from tdmvid.plan.units import GIB

Row = dict[str, Any]
Rows = Iterator[Row]
Choice = dict[str, Any]
"""Settings of the objective."""
ONE = ("batch.total=0", "parallel.compile=false")
SMALL = ("video.frames=9", "video.height=64", "video.width=96")
SHAPES = {
    "2B, 17,776 tokens": (30, 64, 17776),
    "5B, 17,776 tokens": (48, 64, 17776),
    "Wan 14B, 32,760 tokens": (40, 128, 32760),
}
"""Heads, channels of a head and tokens of attention."""


def load(name: str, *changes: str, small: bool) -> RunConfig:
    config = load_config(name, [*ONE, *(SMALL if small else ()), *changes])
    return shortened(config, 2, Path(tempfile.mkdtemp())) if small else config


def matrix_rate(small: bool) -> float:
    """FLOP per second of the best of ten large matrix products in bfloat16."""
    size, device = 256 if small else 8192, torch.device("cuda")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / min(seconds(lambda: a @ a, device)[0] for _ in range(11))


def machine(small: bool) -> Rows:
    """Rates that all else is compared with."""
    device = torch.device("cuda")
    yield {"row": "matrix products, bfloat16", "TFLOP/s": matrix_rate(small) / 1e12}
    x = torch.empty((2**20 if small else 2**31), dtype=torch.bfloat16, device=device)
    took = min(seconds(lambda: x.add_(1), device)[0] for _ in range(6))
    yield {"row": "elementwise kernel", "GB/s": 2 * x.numel() * 2 / took / 1e9}


def attention(small: bool) -> Rows:
    """Forward and backward of attention by every kernel."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    device = torch.device("cuda")
    for shape, (heads, width, tokens) in SHAPES.items():
        size = (1, tokens // 100 if small else tokens, heads, width)
        q, k, v = (
            torch.randn(size, device=device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        work = 3.5 * 4 * heads * width * size[1] ** 2
        for name, backend in BACKENDS.items():

            def call(backend: Any = backend) -> None:
                out = dispatch_attention_fn(q, k, v, backend=backend)  # noqa: B023
                torch.autograd.grad(out, (q, k, v), out)  # noqa: B023

            row: Row = {"row": f"attention by {name}: {shape}"}
            try:
                check_attention(name, device)
                took = min(seconds(call, device)[0] for _ in range(4))
                yield row | {"seconds": took, "TFLOP/s": work / took / 1e12}
            except Exception as error:  # of whatever kind: the other kernels go on
                yield row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}


def iterations(
    title: str, name: str, *changes: str, small: bool, choices: tuple[Choice, ...] = ({},)
) -> Rows:
    """Iterations with the cheapest and the dearest k, whose mean is the mean over k."""
    config = load(name, *changes, small=small)
    world = launch.start(config.parallel.backend)
    rate = matrix_rate(small)
    plan = make_plan(config, launched=world.distributed)
    stage = stage_of(random_backbone(config, world.device), config, world)
    for choice in choices:
        told = "".join(f", {key}={value}" for key, value in choice.items())
        row: Row = {"row": f"{title}{told}"}
        try:
            yield row | _iterate(choice, stage, plan, rate, small=small)
        except Exception as error:  # of whatever kind: the rows of other choices go on
            yield row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    launch.finish()


def _iterate(choice: Choice, stage: Stage, plan: Plan, rate: float, *, small: bool) -> Row:
    """Iterations of one choice of the objective's settings."""
    stage = stage.with_objective(**choice)
    config = stage.config
    stops = config.objective.rollout == "stop" and not small  # a trial draws no k
    # a stream comes through all K steps in K iterations
    found = measure(config, stage, list(steps_of_extreme_k(stage)) if stops else [1, 2, 3, 4])
    took = statistics.mean(found.seconds)
    made = with_calls(replace(plan, config=config), found.forwards)
    return {
        "seconds": took,
        "forwards": found.forwards,
        "peak GiB": found.allocated / GIB,
        "planned GiB": planned_peak(made) / GIB,
        "reserved GiB": found.reserved / GIB,
        "share": shares(made, config, took, rate)["share_executed"],
    }


def zero3(small: bool) -> Rows:
    """ZeRO-3 on one rank of NCCL."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    yield from iterations(
        "2B, ZeRO-3 on one NCCL rank",
        "cogvideox2b_4nfe",
        "parallel.backend=deepspeed",
        "parallel.zero_stage=3",
        small=small,
    )


@torch.no_grad()
def sampling(small: bool) -> Rows:
    """Four calls of a student beside the teacher's fifty guided pairs, without the autoencoder."""
    config = load("cogvideox2b_4nfe", small=small)
    device = torch.device("cuda")
    stage = stage_of(random_backbone(config, device), config, launch.start("none"))
    z = torch.randn(1, *stage.backbone.latent_shape(), device=device)
    cond, dtype = text_like(stage.backbone, 1, 1), torch_dtype(config.model)
    t = torch.full((1,), stage.grid.times[-1], device=device)

    def student() -> None:
        sample(stage.roles.student, z, cond, stage.grid, solver=config.objective.solver)

    pairs = 3 if small else 10
    for call in (student, lambda: stage.roles.teacher(z, t, cond)):
        seconds(call, device)
    few = seconds(student, device)[0]
    pair = seconds(lambda: [stage.roles.teacher(z, t, cond) for _ in range(pairs)], device)[0]
    many = 50 * pair / pairs
    yield {"row": f"2B sampling, 4 calls ({dtype})", "seconds": few}
    yield {"row": "2B sampling, 100 calls (50 guided pairs)", "seconds": many, "ratio": many / few}


def _run(title: str, name: str, *changes: str, **more: Any) -> Callable[[bool], Rows]:
    return lambda small: partial(iterations, title, name, *changes, **more)(small=small)


PATTERNS: tuple[Choice, ...] = (
    {"rollout": "stream", "draws": "shared"},
    {"rollout": "stream", "draws": "own"},
    {"rollout": "stop", "draws": "own"},
    {"rollout": "stop", "draws": "shared"},
    {"rollout": "full", "draws": "own"},
)
TWO, FIVE = "cogvideox2b_4nfe", "cogvideox5b_4nfe"
JOBS: dict[str, tuple[Callable[[bool], Rows], float]] = {
    "machine": (machine, 40),
    "attention": (attention, 60),
    "2b": (_run("2B", TWO, choices=PATTERNS), 110),
    "5b": (_run("5B", FIVE), 110),
    "2b-kept": (_run("2B, attention kept", TWO, "parallel.keep_attention=true"), 60),
    "2b-compiled": (_run("2B, compiled", TWO, "parallel.compile=true"), 110),
    "2b-int8": (_run("2B, int8 base", TWO, "model.quantize=int8"), 60),
    "zero3": (zero3, 70),
    "sampling": (sampling, 60),
    "2b-sdpa": (_run("2B, attention by PyTorch's choice", TWO, "model.attention=sdpa"), 50),
}
"""Jobs in order of worth, and the most seconds of each."""
