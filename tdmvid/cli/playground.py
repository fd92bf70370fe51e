"""Start a local page to try a student beside its teacher.

    pip install '.[playground]' -c constraints-playground.txt    # in the clone
    tdmvid playground --lora runs/shapes_4nfe/lora
    tdmvid playground --lora runs/X/lora --model THUDM/CogVideoX-2b --teacher-steps 25 --port 8080

Open the printed address in a browser: prompt, seed and steps, the student's and the teacher's
sample from the same noise, the time of each, and the files to download. A student of an
image-to-video model also takes an image.

The page listens on 127.0.0.1 only; --host 0.0.0.0 opens it to the network, without a password. It
sends no telemetry and makes no share link. Samples are removed when the command ends: download
what you want to keep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import STUDENT
from .sampler_options import add_base, add_cache, given_base, refuse_fps_of_images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid playground`."""
    parser.add_argument("--lora", type=Path, required=True, help=STUDENT)
    add_base(parser)
    parser.add_argument(
        "--size",
        metavar="FxHxW",
        help="frames x height x width, e.g. 49x480x720 (default: what the student was trained on)",
    )
    parser.add_argument("--fps", type=int, help="frames per second (default: the student's, or 8)")
    parser.add_argument(
        "--teacher-steps",
        type=int,
        help="first value on the page (default: the stock pipeline's steps)",
    )
    add_cache(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")


def run(args: argparse.Namespace) -> None:
    """Load the student's base and serve the page until Ctrl-C."""
    from ..config import check_number
    from ..config.ranges import STEPS
    from ..sampling.playground import Playground, check_gradio, serve

    check_gradio()
    if not 1 <= args.port <= 65_535:
        raise ValueError(f"--port={args.port}: choose a port between 1 and 65535")
    if args.teacher_steps is not None:
        check_number("--teacher-steps", args.teacher_steps, STEPS)
    from ..adapters.bundle import require_facts
    from ..config.resources import find_embedded_size
    from ..parallel import launch
    from ..sampling.student import load_for_sampling

    world = launch.start_alone()
    size = args.size or find_embedded_size(args.model) or None
    require_facts(args.lora, {"--model": args.model, "--size": size})
    refuse_fps_of_images(args, args.lora)
    backbone = load_for_sampling(
        world, student=args.lora, size=args.size, fps=args.fps, **given_base(args)
    )
    playground = Playground(
        backbone, world, args.lora, args.cache, Path(), teacher_steps=args.teacher_steps
    )
    serve(playground, host=args.host, port=args.port)
