"""Measure a TDM iteration of a large model with random weights: seconds, memory, share of the peak
matrix rate.

    python -m benchmarks.large --config cogvideox2b_4nfe
    torchrun --nproc_per_node 8 -m benchmarks.large --config cogvideox1.5_5b_4nfe

A few layers at a small size fit on a CPU:

    python -m benchmarks.large --config cogvideox2b_4nfe --layers 2 --set model.dtype=float32 \
        --set video.frames=9 --set video.height=64 --set video.width=64 \
        --set parallel.gradient_checkpointing=false

The architecture is the real one, from the included configs; nothing is downloaded. Prints the
planned and the measured values, and one JSON line. On a CPU only the activations are measured (what
autograd keeps), and only without gradient checkpointing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import parse
from benchmarks.stopwatch import Kept, seconds
from benchmarks.untrained import Stage, build_stage, untrained
from tdmvid.backbones.dtype import torch_dtype
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config, share_batch
from tdmvid.config.ranges import Range
from tdmvid.parallel import launch
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.plan.plan import Plan
from tdmvid.plan.units import GIB


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of large matrix products, the best of ten.

    Args:
        device: Device to measure.
        dtype: Dtype of the matrices.

    Returns:
        FLOP/s.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device)[0] for _ in range(11)][1:]
    return 2 * size**3 / min(times)


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="name or file of a run's config")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting; may be repeated",
    )
    parser.add_argument(
        "--layers", type=int, default=0, help="number of transformer blocks; 0 for all"
    )
    parser.add_argument(
        "--iterations", type=int, default=5, help="timed after one warm-up iteration"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("cache/untrained"),
        help="folder for random weights, which are written once",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parse(parser, iterations=Range(1, 1000, "iterations"))


@dataclass(frozen=True)
class Measured:
    """Measurements of iterations."""

    seconds: list[float]
    forwards: float
    """Mean number of network calls per micro-batch of an iteration."""
    allocated: int
    """Peak bytes of tensors on a GPU; 0 on a CPU."""
    reserved: int
    """Peak bytes reserved by the allocator."""
    kept: int
    """Peak bytes kept by autograd."""


def measure(config: RunConfig, stage: Stage, steps: list[int]) -> Measured:
    """Time iterations after one warm-up iteration.

    Args:
        config: The run.
        stage: Networks of the run.
        steps: Iterations to time.

    Returns:
        Measurements on this rank.
    """
    device = stage.backbone.device
    with Kept([engine.module for engine in stage.engines.values()]) as kept:
        stage.iterate(0)  # not timed, because counting takes time
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    before = calls_made(stage)
    times = [seconds(partial(stage.iterate, step), device)[0] for step in steps]
    micros = config.batch.micro * config.batch.accumulation * len(steps)
    return Measured(
        times,
        (calls_made(stage) - before) / micros,
        torch.cuda.max_memory_allocated(device) if on_gpu else 0,
        torch.cuda.max_memory_reserved(device) if on_gpu else 0,
        kept.peak,
    )


def calls_made(stage: Stage) -> int:
    """Return the number of samples that have passed through any network.

    Args:
        stage: Networks of the run.

    Returns:
        Number of samples.
    """
    roles: Any = stage.roles
    networks = (roles.student, roles.fake, roles.teacher.denoiser)
    return sum(int(network.evaluated) for network in networks)


def with_calls(plan: Plan, forwards: float) -> Plan:
    """Return a plan with the number of calls that were made. The number depends on the drawn k; a
    plan has the mean.

    Args:
        plan: The plan.
        forwards: Forward passes per iteration.

    Returns:
        A new plan.
    """
    return replace(plan, calls=replace(plan.calls, forwards=forwards))


def planned_peak(plan: Plan) -> float:
    """Return the planned peak memory of an iteration without the autoencoder, which is not loaded
    here.

    Args:
        plan: The plan.

    Returns:
        Bytes.
    """
    memory = plan.memory()
    return sum(memory.values()) - memory.get("autoencoder", 0.0)


def shares(plan: Plan, config: RunConfig, seconds_each: float, rate: float) -> dict[str, float]:
    """Return the shares of the matrix rate that iterations reach, with and without recomputation.

    Args:
        plan: Plan with the number of calls that were made.
        config: The run.
        seconds_each: Seconds per iteration.
        rate: Matrix rate in FLOP/s.

    Returns:
        "share_executed" of all FLOPs, "share_useful" without recomputation.
    """
    useful = config.batch.accumulation * (
        plan.calls.forwards * plan.calls.network.forward_flops
        + plan.calls.backwards * plan.calls.network.backward_flops
    )
    return {
        "share_executed": plan.flops() / seconds_each / rate,
        "share_useful": useful / seconds_each / rate,
    }


def print_result(plan: Plan, result: dict[str, Any]) -> None:
    """Print the plan, the measurements and one JSON line.

    Args:
        plan: The plan.
        result: Measurements and planned values.
    """
    times = result["seconds"]
    each = ", ".join(f"{s:.3f}" for s in times)
    print(describe(plan))
    print(f"seconds per iteration: mean {statistics.mean(times):.3f}, {each}")
    print(
        f"matrix rate {result['matrix_tflops']:.2f} TFLOP/s; reached"
        f" {result['share_executed']:.0%} of it, {result['share_useful']:.0%} without recomputation"
    )
    print(
        f"activations kept {result['activations_gib']:.3f} GiB, planned"
        f" {result['planned_activations_gib']:.3f} GiB"
    )
    if result["peak_gib"]:
        print(
            f"peak {result['peak_gib']:.2f} GiB, planned {result['planned_gib']:.2f} GiB;"
            f" reserved {result['reserved_gib']:.2f} GiB"
        )
    print(json.dumps(result))


def main() -> None:
    """Measure a config on all ranks."""
    args = arguments()
    config = load_config(args.config, args.set)
    world = launch.start(
        config.parallel.backend, config.parallel.timeout_minutes, sequence=config.parallel.sequence
    )
    config = share_batch(config, world.data_size)
    layers = {"num_layers": args.layers} if args.layers else {}
    config = untrained(config, args.work, primary=world.primary, **layers)
    plan = make_plan(config, ranks=world.size, launched=world.distributed)
    rate = matrix_rate(world.device, torch_dtype(config.model))
    stage = build_stage(config, world)
    found = measure(config, stage, list(range(1, 1 + args.iterations)))
    result = {
        "config": args.config.name,
        "layers": args.layers,
        "ranks": world.size,
        "device": str(world.device),
        "seconds": found.seconds,
        "matrix_tflops": rate / 1e12,
        **shares(with_calls(plan, found.forwards), config, statistics.mean(found.seconds), rate),
        "peak_gib": found.allocated / GIB,
        "reserved_gib": found.reserved / GIB,
        "planned_gib": planned_peak(plan) / GIB,
        "activations_gib": found.kept / GIB,
        "planned_activations_gib": plan.activations(plan.checkpointing) / GIB,
    }
    if world.primary:
        print_result(plan, result)
    launch.finish()


if __name__ == "__main__":
    run_program(main)
