"""How an iteration grows with tokens, LoRA rank, K and ranks that share a sequence, beside what
`--plan` says.

    python -m benchmarks.scaling --json scaling.json
    python -m benchmarks.scaling --sequence 1

A small CogVideoX with random weights is measured, a few minutes on one core; `--sequence 1` leaves
out the last rows, which take two processes (gloo).

Work, activations and bytes sent are measured over planned: 1 is a formula that holds. Peak is of
all tensors alive at once beyond those that stay (networks, optimiser), over the planned
activations, working memory and gradients; of several ranks it is not compared, since the profiler
does not see what gloo's threads free. Seconds are compared by their ratio to planned work, as a
share of the first row's: above 1, a FLOP costs more there.
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
from benchmarks.stopwatch import Kept, alternate, peak_bytes, report
from benchmarks.untrained import SMALL, build_stage, untrained
from tdmvid.cli.leave import run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.parallel import launch
from tdmvid.plan.cost import ATTENTION_ON_A_CPU
from tdmvid.plan.plan import PASSING, Plan, make_plan

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
    """Bytes that this rank sends to others, by collective, while it is entered."""

    # which of a collective's arguments is this rank's, and how often a ring sends that on
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
    """A run of the small CogVideoX."""
    config = load_config("cogvideox2b_4nfe", [*BASE, *overrides])
    return untrained(
        config, work, primary=primary, **SMALL["CogVideoXPipeline"] | {"num_layers": 2}
    )


def gather_little(values: int) -> None:
    """Make a network of so many parameters as large to ZeRO-3 as one of some billions: nothing
    stays whole, and a quarter of it is gathered at a time.
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
    """What one iteration takes, the mean over k: FLOP, bytes, seconds."""
    stage = build_stage(config, world)

    def both(turn=0):
        return [stage.iterate(step) for step in steps_of_extreme_k(stage)]

    modules = [engine.module for engine in stage.engines.values()]
    both()  # the optimiser's state is there afterwards
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
    """per_work: seconds per planned FLOP of the first row. Several ranks have no peak: the profiler
    does not see what gloo's threads free.
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
    """`measure` of a changed run in several processes: the first rank's figures."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--sequence",
        type=int,
        default=2,
        help="ranks of the last rows, which share a sequence or the weights; 1 leaves them out",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("cache/untrained"),
        help="where random weights are written once",
    )
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def one(args: argparse.Namespace) -> None:
    """One of several processes: the first prints what it measured."""
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
