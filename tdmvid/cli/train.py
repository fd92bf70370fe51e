"""Distil a teacher into a few-step student.

    tdmvid train --config cogvideox2b_4nfe --resume auto
    tdmvid train --config configs/shapes_4nfe.json --set steps=2 --out runs/smoke
    torchrun --nproc_per_node 8 -m tdmvid train --config cogvideox2b_4nfe
    deepspeed launch/train.py --config configs/cogvideox2b_4nfe.json

`tdmvid plan` (or --plan) prints what a run would do, its memory and its cost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.paths import expand_home
from ..parallel.environment import launcher_of
from ..plan.devices import DEFAULT, DEVICES, choose_device
from .given import refuse_ignored
from .options import add_config, add_launched

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..plan.plan import Plan
    from ..plan.price import Terms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid train` to a parser."""
    add_run(parser)
    parser.add_argument(
        "--resume",
        type=expand_home,
        default="",
        help="'auto' (the latest complete checkpoint) or a checkpoint folder",
    )
    parser.add_argument("--plan", action="store_true", help="print what the run would do and stop")
    add_plan(parser)
    add_launched(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that select a run to a parser: `--config`, `--set` and `--out`."""
    add_config(parser, example="cogvideox2b_4nfe or configs/shapes_4nfe.json")
    parser.add_argument("--out", help="run folder (default: runs/<name>)")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options of a plan to a parser."""
    parser.add_argument("--ranks", type=int, default=1, help="number of ranks of the plan")
    parser.add_argument(
        "--nodes",
        type=int,
        help="search for the best layout on this number of nodes: print the three fastest layouts"
        " that fit, and the plan of the first",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        help="devices per node for --nodes (default: 8); without --nodes, of a single node",
    )
    parser.add_argument(
        "--device-memory",
        type=float,
        default=0.0,
        metavar="GIB",
        help="memory per device in GiB; the plan fails if the run does not fit",
    )
    parser.add_argument(
        "--device",
        choices=list(DEVICES),
        help=f"device of the cost estimate, with its data sheet values (default: {DEFAULT})",
    )
    parser.add_argument(
        "--tflops", type=float, help="dense peak of the device in the run's dtype, in TFLOP/s"
    )
    parser.add_argument("--bandwidth", type=float, help="memory bandwidth of the device, in TB/s")
    parser.add_argument(
        "--seconds",
        type=float,
        help="measured seconds per iteration; the plan then uses them instead of an estimate",
    )


def run(args: argparse.Namespace) -> None:
    """Train, export and score a student, or print the plan.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If a setting or an option is invalid.
        SystemExit: If the run was stopped by a signal.
    """
    if args.plan:
        why = "with --plan, which shows a run from its first iteration"
        refuse_ignored(args, ["resume"], why, remedy="remove one of them")
        print_plan(read_config(args), args)
        return
    config = read_config(args)
    _check_no_plan(args)
    from ..scoring.after_training import Evaluation, score_command

    evaluation = Evaluation(config)
    evaluation.announce()
    from ..train.signals import STOPPED, Interrupted
    from ..train.trainer import train

    scoring = {"score": score_command(config)} if config.evaluate.program else {}
    commands = {"train": launcher_of(args.command_line), **scoring}
    try:
        train(config, resume=args.resume, commands=commands, before_leaving=evaluation.meet)
        evaluation.run()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(exit_status(STOPPED)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: a run with checkpoints can be continued with --resume auto"
        ) from None


def _check_no_plan(args: argparse.Namespace) -> None:
    """Refuse options of a plan, which have no effect on a run."""
    usual = argparse.ArgumentParser()
    add_plan(usual)
    remedy = (
        "add --plan, or remove it. To train on 8 GPUs, use torchrun --nproc_per_node 8 -m tdmvid"
        " train"
    )
    refuse_ignored(args, vars(usual.parse_args([])), "without --plan", remedy=remedy)


def read_config(args: argparse.Namespace) -> RunConfig:
    """Load the settings of a run from the options, and check the evaluation at its end.

    Args:
        args: Options of `add_run`.

    Returns:
        The settings.

    Raises:
        ValueError: If a setting is invalid.
    """
    from ..config import load_config
    from ..scoring.after_training import score_words

    overrides = args.set + ([f"out={json.dumps(args.out)}"] if args.out else [])
    config = load_config(args.config, overrides)
    score_words(config)
    return config


def print_plan(config: RunConfig, args: argparse.Namespace) -> None:
    """Print the plan of a run.

    Args:
        config: Settings of the run.
        args: Options of `add_plan`.

    Raises:
        ValueError: If the run does not fit into `--device-memory`.
    """
    from ..data.progress import progress
    from ..plan.describe import describe
    from ..plan.make import STAGES, make_plan
    from ..plan.price import Terms
    from ..plan.remedies import check_fit
    from ..scoring.after_training import outlook

    device = choose_device(args.device, tflops=args.tflops or 0, bandwidth=args.bandwidth or 0)
    terms = Terms(device=device, seconds=args.seconds or 0)
    evaluation = outlook(config)
    if args.nodes or args.gpus:
        plan, terms = _quickest(config, args, terms)
    else:
        with progress("planning", total=STAGES) as bar:
            plan = make_plan(config, ranks=args.ranks, progress=bar.update)
    print(
        describe(
            plan,
            device_memory=args.device_memory,
            evaluation=evaluation.text if evaluation else "",
            terms=terms,
        )
    )
    if args.device_memory:
        with progress("searching settings that fit"):
            check_fit(plan, args.device_memory)


def _quickest(config: RunConfig, args: argparse.Namespace, terms: Terms) -> tuple[Plan, Terms]:
    """Print the fastest layouts on `--nodes` x `--gpus`; return the plan and terms of the first."""
    from ..data.progress import progress

    nodes, gpus = args.nodes or 1, args.gpus or 8
    if args.ranks not in (1, nodes * gpus):
        raise ValueError(
            f"--ranks={args.ranks} contradicts --nodes={nodes} --gpus={gpus}, which are"
            f" {nodes * gpus} ranks: remove it"
        )
    if args.seconds:
        raise ValueError(
            f"--seconds={args.seconds:g} applies to one layout, but --nodes compares several: use"
            " it with --ranks"
        )
    terms = replace(terms, gpus=gpus)
    with progress("searching layouts", total=1, unit="trace") as bar:
        from ..plan.describe_layouts import describe_layouts, layout_limit
        from ..plan.layouts import find_layouts

        begun: list[int] = []

        def show(left: int) -> None:
            begun.append(left)
            bar.total = begun[0]
            bar.update(bar.total - left - bar.n)

        limit = layout_limit(terms.device, args.device_memory)
        layouts = find_layouts(config, ranks=nodes * gpus, terms=terms, limit=limit, progress=show)
    print(describe_layouts(layouts, limit=limit, terms=terms), end="\n\n")
    return layouts[0].plan, terms


def exit_status(status: int) -> int:
    """Return the exit status of a stopped run.

    A launcher reports every status other than 0 as a failure. If TDMVID_STOPPED names a file, the
    file is created instead and the status is 0.

    Args:
        status: Status of a stopped run.

    Returns:
        The status to exit with.
    """
    marker = os.environ.get("TDMVID_STOPPED")
    if not marker:
        return status
    Path(marker).touch()
    return 0
