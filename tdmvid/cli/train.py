"""Distil a teacher into a few-step student.

    tdmvid train --config cogvideox2b_4nfe --resume auto
    tdmvid train --config configs/shapes_4nfe.json --set steps=2 --out runs/smoke
    torchrun --nproc_per_node 8 -m tdmvid train --config cogvideox2b_4nfe
    deepspeed launch/train.py --config configs/cogvideox2b_4nfe.json

`tdmvid plan` (or --plan) prints what a run would do and what memory it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_config, add_launched

if TYPE_CHECKING:
    from ..config import RunConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid train`."""
    add_run(parser)
    parser.add_argument(
        "--resume", default="", help="'auto' (newest whole checkpoint) or a checkpoint folder"
    )
    parser.add_argument("--plan", action="store_true", help="print what the run would do and stop")
    add_plan(parser)
    add_launched(parser)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which run is meant."""
    add_config(parser, example="cogvideox2b_4nfe or configs/shapes_4nfe.json")
    parser.add_argument("--out", help="run folder (default runs/<name>)")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options that only a plan reads."""
    parser.add_argument("--ranks", type=int, default=1, help="ranks that a plan counts with")
    parser.add_argument(
        "--device-memory",
        type=float,
        default=0.0,
        metavar="GIB",
        help="memory of a rank's device: a plan refuses what does not fit",
    )


def run(args: argparse.Namespace) -> None:
    """Train, export and score; or print the plan."""
    config = read_config(args)
    if args.plan:
        print_plan(config, ranks=args.ranks, device_memory=args.device_memory)
        return
    from ..scoring.after_training import Evaluation, score_command

    evaluation = Evaluation(config)
    evaluation.announce()
    from ..train.signals import STOPPED, Interrupted
    from ..train.trainer import train

    scoring = {"score": score_command(config)} if config.evaluate.program else {}
    commands = {"train": args.command_line, **scoring}
    try:
        train(config, resume=args.resume, commands=commands, before_leaving=evaluation.meet)
        evaluation.run()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(exit_status(STOPPED)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "interrupted: a run that has checkpoints goes on with --resume auto"
        ) from None


def read_config(args: argparse.Namespace) -> RunConfig:
    """Load the run that the options name; what its end needs is refused here, at its start."""
    from ..config import load_config
    from ..scoring.after_training import score_words

    overrides = args.set + ([f"out={json.dumps(args.out)}"] if args.out else [])
    config = load_config(args.config, overrides)
    score_words(config)
    return config


def print_plan(config: RunConfig, *, ranks: int, device_memory: float) -> None:
    """Print the plan of a run; ValueError if it does not fit into `device_memory` GiB."""
    from ..plan.describe import describe
    from ..plan.plan import make_plan
    from ..plan.remedies import check_fit
    from ..scoring.after_training import outlook

    evaluation = outlook(config)
    plan = make_plan(config, ranks=ranks)
    print(
        describe(
            plan, device_memory=device_memory, evaluation=evaluation.text if evaluation else ""
        )
    )
    if device_memory:
        check_fit(plan, device_memory)


def exit_status(status: int) -> int:
    """Return the exit status of a stopped run: a launcher would report every status as a failure,
    so a file can take its place.
    """
    marker = os.environ.get("TDMVID_STOPPED")
    if not marker:
        return status
    Path(marker).touch()
    return 0
