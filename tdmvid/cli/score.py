"""Score a student beside its teacher, or samplers on the shapes world.

    eval/setup_vbench.sh                                                  # once
    tdmvid score vbench --config vbench_cogvideox2b --preflight
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    tdmvid score images --config images --lora runs/X/lora
    tdmvid score shapes --run runs/shapes_4nfe
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

`tdmvid score vbench --help` and its siblings explain one of them.
"""

from __future__ import annotations

import argparse

from .options import add_evaluation, output_dir

VBENCH = """VBench of a student beside its teacher.

    tdmvid score vbench --config vbench_cogvideox2b --preflight
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

Killed or out of time, the same command goes on where it was. Dimensions whose weights are not there
are left out and named; a total appears only where all sixteen were scored.
"""
IMAGES = """Image metrics of a student beside its teacher.

    tdmvid score images --config images --preflight
    tdmvid score images --config images --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score images --config images --lora runs/X/lora
    python eval/image_run.py --config eval/configs/images.json --lora runs/X/lora

The student's FID to its own teacher says how much of the teacher's style it kept. Measures whose
weights or libraries are not there are left out and named.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tdmvid score` with their options."""
    commands = parser.add_subparsers(required=True, metavar="{vbench,images}")
    vbench = _add(commands, "vbench", VBENCH, score_vbench)
    add_evaluation(vbench, example="vbench_cogvideox2b", folder="vbench")
    vbench.add_argument(
        "--stage",
        choices=["all", "sample", "score"],
        default="all",
        help="sample alone, or score what was sampled",
    )
    images = _add(commands, "images", IMAGES, score_images)
    add_evaluation(images, example="images", folder="images")


def _add(commands, name: str, text: str, function) -> argparse.ArgumentParser:
    """Add one command; its function is called with the parsed options."""
    parser = commands.add_parser(
        name,
        help=text.splitlines()[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def run(args: argparse.Namespace) -> None:
    """Run the chosen command."""
    args.function(args)


def score_vbench(args: argparse.Namespace) -> None:
    """Sample both sides, score them by the VBench package and compare; or say what could be."""
    from ..config.resources import find_evaluation
    from ..config.run import from_dict, read_settings
    from ..scoring import vbench_run
    from ..scoring.vbench_suite import VBenchConfig

    config = from_dict(VBenchConfig, read_settings(find_evaluation(args.config), args.set))
    evaluation = vbench_run.prepare(config)
    if args.preflight:
        print(evaluation.checked.describe())
    if args.stage != "sample":
        evaluation.environment.find_python()  # refused before anything is sampled
    if not args.preflight:
        out = output_dir(args, "vbench")
        vbench_run.run(evaluation, args.lora, out, stage=args.stage)


def score_images(args: argparse.Namespace) -> None:
    """Sample both sides, measure them and compare; or say what could be measured."""
    from ..config.resources import find_evaluation
    from ..config.run import from_dict, read_settings
    from ..scoring import image_run

    config = from_dict(image_run.ImageConfig, read_settings(find_evaluation(args.config), args.set))
    checked = image_run.ready(config)
    if args.preflight:
        print(checked.describe())
    else:
        image_run.run(config, checked, args.lora, output_dir(args, "images"))
