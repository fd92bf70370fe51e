"""Compare the frozen base in int8 and float8 with the unquantized one on the embedded teacher:
bytes, error, seconds, and quality of the students.

    python -m benchmarks.quantized                              # bytes, error, seconds
    python -m benchmarks.quantized --iterations 200 --seeds 2   # also distil with each
    python -m benchmarks.quantized --set model.dtype=float32    # without rounding by bfloat16

Times are those of guided teacher calls and of whole iterations, measured alternately. A student's
distance is that of `benchmarks.race shapes`, on the base it was trained on and on the unquantized
base, which users have.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import race
from benchmarks.options import parse
from benchmarks.stopwatch import MIB, Kept, alternate, report
from tdmvid.backbones.quantize import held_bytes
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.train.run import Run, build_run, on_whole_base

KINDS = ("none", "int8", "float8")


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting; may be repeated",
    )
    parser.add_argument("--repeats", type=int, default=7, help="number of timed rounds")
    parser.add_argument(
        "--iterations",
        type=int,
        default=0,
        help="also distil each for this many iterations and score the students",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of students to distil with each"
    )
    parser.add_argument(
        "--captions",
        type=int,
        default=32,
        help="number of held-out captions to score with, four videos each",
    )
    parser.add_argument("--json", type=Path, help="add the results to this file")
    return parse(parser)


def of_kind(config: RunConfig, kind: str) -> RunConfig:
    """Return the run with another quantization of the base.

    Args:
        config: The run.
        kind: Value of `model.quantize`.

    Returns:
        A new config.
    """
    return replace(config, model=replace(config.model, quantize=kind))


def frozen_bytes(run: Run) -> int:
    """Return the size of the student's frozen parameters.

    Args:
        run: The run.

    Returns:
        Bytes.
    """
    student = run.engines["student"]
    return held_bytes(student.module) - sum(
        p.numel() * p.element_size() for p in student.trainable.values()
    )


def kept_bytes(run: Run) -> int:
    """Return the memory that autograd keeps for one graded call of a micro-batch.

    Args:
        run: The run.

    Returns:
        Peak bytes.
    """
    z = torch.randn((run.config.batch.micro, *run.backbone.latent_shape()), device=run.world.device)
    with Kept([run.engines["student"].module]) as kept:
        out = run.roles.student(z, z.new_full((len(z),), 0.5), run.conds(list(range(len(z)))))
    assert out.requires_grad
    return kept.peak


def costs(runs: dict[str, Run], repeats: int) -> list[list[object]]:
    """Measure bytes, error and seconds of each quantization.

    Args:
        runs: Runs by quantization.
        repeats: Number of timed rounds.

    Returns:
        One row per quantization.
    """
    z = torch.randn(
        (16, *runs["none"].backbone.latent_shape()), generator=torch.Generator().manual_seed(0)
    ).to(runs["none"].world.device)
    cond, t = runs["none"].conds(list(range(len(z)))), z.new_full((len(z),), 0.5)
    call = torch.no_grad()(lambda run: run.roles.teacher(z, t, cond))
    calls = alternate(
        {kind: lambda turn, run=run: call(run) for kind, run in runs.items()},
        repeats=repeats,
        device=z.device,
    )
    loops = {
        kind: lambda turn, run=run: race.run_iterations(run, range(2 * turn, 2 * turn + 2))
        for kind, run in runs.items()
    }
    iterations = alternate(loops, repeats=repeats, device=z.device)
    rows = []
    for kind, run in runs.items():
        errors = ", ".join(f"{error:.2%}" for error in run.rounding.errors) if run.rounding else ""
        planned = make_plan(run.config).weights.base_bytes
        rows.append(
            [
                kind,
                f"{frozen_bytes(run) / MIB:.2f} ({planned / MIB:.2f})",
                errors,
                kept_bytes(run) / MIB,
                1e3 * calls[kind].seconds,
                iterations[kind].seconds / 2,
            ]
        )
    return rows


def students(config: RunConfig, captions: int, seeds: int) -> list[list[object]]:
    """Distil with each quantization and score the students on their own and on the unquantized
    base.

    Args:
        config: The run.
        captions: Number of held-out captions.
        seeds: Number of seeds.

    Returns:
        One row per quantization.
    """
    distance, rows = (
        race.Distance(build_run(of_kind(config, "none"), launch.start("none")), captions, 4),
        [],
    )
    for kind in KINDS:
        found = []
        for seed in range(seeds):
            run = build_run(replace(of_kind(config, kind), seed=seed), launch.start("none"))
            race.run_iterations(run, range(config.steps))
            whole = (
                on_whole_base(run, run.engines["student"].weights(averaged=True))
                if run.rounding
                else run
            )
            found.append((distance(run), distance(whole)))
            print(f"{kind}, seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
        rows.append(
            [kind, *(", ".join(f"{value:.3f}" for value in column) for column in zip(*found))]
        )
    return rows


def main() -> None:
    """Compare the quantizations."""
    args = arguments()
    config = load_config("shapes_4nfe", args.set)
    runs = {kind: build_run(of_kind(config, kind), launch.start("none")) for kind in KINDS}
    device = runs["none"].world.device
    times = ", ".join(f"{t:g}" for t in runs["none"].grid.descending())
    head = [
        "base",
        "MiB held (planned)",
        f"teacher's clean prediction is off, t = {times}",
        "MiB kept of a graded call",
        "ms of a teacher's call",
        "s of an iteration",
    ]
    report("a quantised base", head, costs(runs, args.repeats), device=device, path=args.json)
    if args.iterations:
        rows = students(replace(config, steps=args.iterations), args.captions, args.seeds)
        head = ["base", "Fréchet distance to the teacher's samples", "on the whole base"]
        report(
            f"students of {args.iterations} iterations", head, rows, device=device, path=args.json
        )


if __name__ == "__main__":
    run_program(main)
