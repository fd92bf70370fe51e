"""Measure the latency of a student and its teacher: text encoder, denoiser, autoencoder, and total.

    tdmvid latency --lora runs/X/lora
    tdmvid latency --lora runs/X/lora --model THUDM/CogVideoX-2b --size 49x480x720 --repeats 5
    python eval/latency.py --lora runs/X/lora --steps 50 --cfg 6

With few steps, the autoencoder can take most of the time. The total speed-up is then far below the
ratio of network calls, so both are printed. "All" is the sum of the stages. "End to end" is one
call of the diffusers pipeline from prompt to output, with everything on the device. A note is
printed if the two disagree.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import STUDENT, output_file
from .sampler_options import add_base, given_base


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid latency` to a parser."""
    parser.add_argument("--lora", type=Path, required=True, help=STUDENT)
    add_base(parser)
    parser.add_argument(
        "--size", metavar="FxHxW", help="frames x height x width (default: the training size)"
    )
    parser.add_argument("--steps", type=int, default=50, help="sampling steps of the teacher")
    parser.add_argument(
        "--cfg",
        type=float,
        help="guidance scale of the teacher (default: that of the student's training, or of the"
        " pipeline)",
    )
    parser.add_argument(
        "--prompt",
        default="a red ring moving left and a blue square moving up",
        help="prompt of the timed samples",
    )
    parser.add_argument("--batch", type=int, default=1, help="samples per batch")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed calls of each stage, after one warm-up call"
    )
    parser.add_argument("--json", type=output_file, help="write the results to this file")


def run(args: argparse.Namespace) -> None:
    """Time student and teacher, and print the table.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the student or an option is invalid.
    """
    from ..adapters.bundle import require_facts
    from ..data.files import write_json
    from ..parallel import launch
    from ..sampling.sample import steps_and_cfg
    from ..sampling.side_by_side import teacher_of
    from ..sampling.student import load_for_sampling
    from ..scoring.latency import table, time_samplers

    require_facts(args.lora, {})
    backbone = load_for_sampling(
        launch.start_alone(), student=args.lora, size=args.size, **given_base(args)
    )
    prompts = [args.prompt] * args.batch
    cfg = args.cfg
    if cfg is None:
        _, cfg = steps_and_cfg(backbone, teacher_of(backbone, args.lora))
    found = time_samplers(
        backbone, args.lora, prompts, steps=args.steps, cfg=cfg, repeats=args.repeats
    )
    size, guided = backbone.size, f"guidance {cfg:g}" if cfg != 1 else "no guidance"
    print(
        f"{found['machine']}\n{size.frames} x {size.height} x {size.width},"
        f" {backbone.config.dtype}, batch {args.batch}, median of {args.repeats}\n"
        f"teacher in {args.steps} steps with {guided}\n"
    )
    print(table(found, args.batch))
    if args.json:
        write_json(args.json, found)
