"""Measure how an iteration scales with tokens, LoRA rank, K and ranks that share a sequence, and
compare with the plan.

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --sequence 1

Measures a small CogVideoX with random weights, which takes a few minutes on one core. `--sequence
1` leaves out the last rows, which use two processes (gloo).

Compute, activations and bytes sent are given as measured divided by planned; 1 means that the
formula is exact. Peak is the memory of all tensors alive at once, without those that stay
(networks, optimizer state), divided by the planned activations, working memory and gradients. It is
not compared for several ranks, because the profiler does not see what gloo's threads free. Seconds
are divided by the planned compute, relative to the first row; above 1, a FLOP takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.iteration import steps_of_extreme_k
from benchmarks.options import parse
from benchmarks.stopwatch import Kept, alternate, peak_bytes, report
from benchmarks.untrained import SMALL, build_stage, untrained
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.parallel import launch
from tdmvid.plan.cost import ATTENTION_ON_A_CPU
from tdmvid.plan.make import make_plan
from tdmvid.plan.plan import PASSING, Plan

BASE = [
    "grid.kind=uniform",
    "grid.steps=4",
    "grid.timesteps=[]",
    "video.frames=17",
    "video.height=128",
    "video.width=128",
    "lora.rank=16",
    "lora.alpha=16",
    "batch.micro=1",
    "batch.total=0",
    "model.dtype=float32",
    "parallel.gradient_checkpointing=false",
    "parallel.zero_stage=2",
]
POINTS = [
    ("17 x 128 x 128, rank 16, K = 4", []),
    ("9 x 64 x 64", ["video.frames=9", "video.height=64", "video.width=64"]),
    ("9 x 128 x 128", ["video.frames=9"]),
    ("17 x 192 x 192", ["video.height=192", "video.width=192"]),
    ("rank 4", ["lora.rank=4"]),
    ("rank 64", ["lora.rank=64"]),
    ("K = 2", ["grid.steps=2"]),
    ("K = 8", ["grid.steps=8"]),
    ("checkpointing", ["parallel.gradient_checkpointing=true"]),
    (
        "checkpointing, attention kept",
        ["parallel.gradient_checkpointing=true", "parallel.keep_attention=true"],
    ),
    ("bfloat16", ["model.dtype=bfloat16"]),
]
SHARDED = ["parallel.zero_stage=3", "parallel.gradient_checkpointing=true"]
HEAD = [
    "run",
    "tokens",
    "calls",
    "work",
    "activations",
    "peak",
    "tokens sent",
    "weights sent",
    "gradients and updates sent",
    "seconds",
    "seconds per work",
]


class Sent(TorchDispatchMode):
    """Count the bytes that this rank sends to others within this context, by collective.

    Args:
        ranks: Number of ranks.
    """

    # index of the argument with this rank's data, and how many times a ring sends it
    TIMES = {
        "alltoall": (1, lambda ranks: (ranks - 1) / ranks),
        "allreduce": (0, lambda ranks: 2 * (ranks - 1) / ranks),
        "allgather": (1, lambda ranks: ranks - 1),
        "reducescatter": (1, lambda ranks: (ranks - 1) / ranks),
    }

    def __init__(self, ranks: int):
        super().__init__()
        self.ranks, self.bytes = ranks, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.replace("_", "")
        for kind, (own, times) in self.TIMES.items() if func.namespace == "c10d" else ():
            if name.startswith(kind):
                self.bytes[kind] += times(self.ranks) * sum(
                    x.numel() * x.element_size() for x in _tensors(args[own])
                )
        return func(*args, **(kwargs or {}))


def _tensors(argument) -> list[torch.Tensor]:
    return [argument] if isinstance(argument, torch.Tensor) else list(argument)


def prepare(overrides: list[str], work: Path, *, primary: bool = True) -> RunConfig:
    """Return a run of the small CogVideoX with random weights.

    Args:
        overrides: Further settings as in `--set`.
        work: Folder for random weights.
        primary: Whether this rank writes them.

    Returns:
        The config.
    """
    config = load_config("cogvideox2b_4nfe", [*BASE, *overrides])
    return untrained(
        config, work, primary=primary, **SMALL["CogVideoXPipeline"] | {"num_layers": 2}
    )


def gather_little(values: int) -> None:
    """Make ZeRO-3 treat a small network like one of billions of parameters.

    No parameter stays gathered, and a quarter of the network is gathered at a time.

    Args:
        values: Number of parameters of the network.
    """
    from tdmvid.parallel import deepspeed_engine

    whole = deepspeed_engine.deepspeed_config

    def settings(*args, **kwargs) -> dict:
        made, live = whole(*args, **kwargs | {"persistence_threshold": 0}), values // 4
        made["zero_optimization"] |= {
            "stage3_max_live_parameters": live,
            "stage3_max_reuse_distance": live,
            "stage3_prefetch_bucket_size": live // 20,
        }
        return made

    deepspeed_engine.deepspeed_config = settings


def measure(config: RunConfig, world: launch.World, repeats: int) -> dict[str, float]:
    """Measure one iteration, the mean over k.

    Args:
        config: The run.
        world: Processes of the run.
        repeats: Number of timed rounds.

    Returns:
        FLOPs, bytes and seconds by name.
    """
    stage = build_stage(config, world)

    def both(turn=0):
        return [stage.iterate(step) for step in steps_of_extreme_k(stage)]

    modules = [engine.module for engine in stage.engines.values()]
    both()  # creates the optimizer state
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_A_CPU) as counter:
        both()
    with Kept(modules) as kept:
        both()
    with Sent(world.size) as sent:
        both()
    clock = alternate({"": both}, repeats=repeats, device=world.device)[""]
    gathered = "weights" if config.parallel.zero_stage == 3 else "trained"
    purposes = {
        "alltoall": "tokens",
        "allgather": gathered,
        "allreduce": "trained",
        "reducescatter": "trained",
    }
    traffic = Counter()
    for kind, size in sent.bytes.items():
        traffic[purposes[kind]] += size / 2
    return {
        "flops": counter.get_total_flops() / 2,
        "kept": kept.peak,
        "peak": peak_bytes(both, world.device),
        "seconds": clock.seconds / 2,
        **{purpose: traffic[purpose] for purpose in ("tokens", "weights", "trained")},
    }


def row(name: str, plan: Plan, measured: dict[str, float], per_work: float) -> list[object]:
    """Return a row of the table.

    Args:
        name: Name of the run.
        plan: Its plan.
        measured: Result of `measure`.
        per_work: Seconds per planned FLOP of the first row.

    Returns:
        Values of the columns of `HEAD`; "-" where measured and planned values cannot be compared.
    """
    memory, traffic = plan.memory(), plan.traffic()

    def over(key, planned):
        return measured[key] / planned if planned else "-"

    return [
        name,
        plan.tokens.count,
        f"{plan.calls.forwards:g}F {plan.calls.backwards}B",
        over("flops", plan.flops()),
        "-" if plan.checkpointing else over("kept", plan.activations(False)),
        "-" if plan.ranks > 1 else over("peak", sum(memory.get(name, 0.0) for name in PASSING)),
        over("tokens", traffic.get("tokens")),
        over("weights", traffic.get("weights")),
        over("trained", sum(traffic.get(key, 0.0) for key in ("gradients", "updated weights"))),
        measured["seconds"],
        measured["seconds"] / plan.flops() / per_work,
    ]


def launched(ranks: int, overrides: list[str], args: argparse.Namespace) -> dict[str, float]:
    """Run `measure` in several processes.

    Args:
        ranks: Number of processes.
        overrides: Further settings as in `--set`.
        args: Options of the command line.

    Returns:
        Measurements of the first rank.

    Raises:
        RuntimeError: A process failed.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(ranks),
        "-m",
        "benchmarks.scaling",
        "--repeats",
        str(args.repeats),
        "--work",
        str(args.work),
        "--one",
        *overrides,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="number of timed rounds")
    parser.add_argument(
        "--sequence",
        type=int,
        default=2,
        help="number of ranks in the last rows, which share a sequence or weights; 1 skips them",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("cache/untrained"),
        help="folder for random weights, which are written once",
    )
    parser.add_argument("--json", type=Path, help="add the results to this file")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    return parse(parser)


def one(args: argparse.Namespace) -> None:
    """Measure in one of several processes. The first prints its result.

    Args:
        args: Options of the command line.
    """
    sequence = next(
        (int(text.split("=")[1]) for text in args.one if text.startswith("parallel.sequence=")), 1
    )
    world = launch.start("auto", sequence=sequence)
    config = prepare(args.one, args.work, primary=world.primary)
    if config.parallel.zero_stage == 3:
        gather_little(make_plan(config, ranks=world.size).weights.base)
    measured = measure(config, world, args.repeats)
    if world.primary:
        print(json.dumps(measured))
    launch.finish()


def main() -> None:
    """Measure all rows and print the table."""
    args = arguments()
    torch.set_num_threads(1)
    if args.one:
        return one(args)
    world, rows, per_work = launch.start("none"), [], 0.0
    for name, overrides in POINTS:
        config = prepare(overrides, args.work)
        plan, measured = make_plan(config), measure(config, world, args.repeats)
        per_work = per_work or measured["seconds"] / plan.flops()
        rows.append(row(name, plan, measured, per_work))
        print(f"{name}: {measured['seconds']:.3g} s", file=sys.stderr, flush=True)
    together = [f"parallel.sequence={args.sequence}"]
    for name, overrides in (
        [("share the tokens", together), ("share the weights, checkpointing", SHARDED)]
        if args.sequence > 1
        else ()
    ):
        plan = make_plan(prepare(overrides, args.work), ranks=args.sequence)
        rows.append(
            row(
                f"{args.sequence} ranks {name}",
                plan,
                launched(args.sequence, overrides, args),
                per_work,
            )
        )
    report(
        "scaling of an iteration, a small CogVideoX: measured over planned",
        HEAD,
        rows,
        device=world.device,
        path=args.json,
    )


if __name__ == "__main__":
    run_program(main)
