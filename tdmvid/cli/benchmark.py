"""Sample the prompts of a public benchmark, in the folder layout of its scorer.

    tdmvid benchmark --benchmark geneval --prompts evaluation_metadata.jsonl --seeds 4 \\
        --lora runs/X/lora --out geneval
    tdmvid benchmark --benchmark hpdv2 --prompts benchmark/ --model M --size 1x512x512 \\
        --steps 50 --cfg 7.5 --out teacher
    torchrun --nproc_per_node 8 -m tdmvid benchmark ...
    python eval/benchmark_sample.py --benchmark geneval ...

Benchmarks: hpdv2, drawbench, coco, geneval, t2v-compbench. Their files and folders are described in
tdmvid/scoring/benchmark_layouts.py. Running the same command again makes only missing files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import output_folder
from .sampler_options import add_sampler, base_of, sampler_of

if TYPE_CHECKING:
    from ..scoring.benchmark_layouts import Layout

BENCHMARKS = ("hpdv2", "drawbench", "coco", "geneval", "t2v-compbench")
OF_VIDEOS = ("t2v-compbench",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid benchmark` to a parser."""
    parser.add_argument(
        "--benchmark", choices=BENCHMARKS, required=True, help="benchmark with its own scorer"
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="prompt file or folder of the benchmark"
    )
    parser.add_argument("--out", type=output_folder, required=True, help="output directory")
    parser.add_argument(
        "--seeds", type=int, default=1, help="samples per prompt; GenEval's protocol uses 4"
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="number of files, from the first; 0 makes all"
    )
    add_sampler(parser)


def run(args: argparse.Namespace) -> None:
    """Make missing samples, and the text files that the scorer expects.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the size does not fit the benchmark, or an option is invalid.
    """
    from ..parallel import launch
    from ..sampling.sample import check_sampler, sample_videos
    from ..sampling.student import load_for_sampling
    from ..scoring.benchmark_layouts import layout

    sampler = sampler_of(args)
    check_sampler(sampler)
    wanted = layout(args.benchmark, args.prompts, seeds=args.seeds)
    shots = wanted.shots[: args.limit or None]
    # Ranks wait for the last file of the slowest rank.
    world = launch.start("auto", timeout_minutes=24 * 60)
    backbone = load_for_sampling(world, **base_of(args))
    _check_frames(args.benchmark, backbone.size.frames)
    if world.primary:
        _write_texts(args.out, wanted, {str(Path(shot.file).parts[0]) for shot in shots})
    sample_videos(
        args.out,
        shots,
        backbone=backbone,
        sampler=sampler,
        world=world,
        batch=args.batch,
        cache=args.cache,
    )
    if world.primary:
        print(f"wrote {len(shots)} files for the scorer of {args.benchmark} to {args.out}")
    launch.finish()


def _check_frames(benchmark: str, frames: int) -> None:
    videos = benchmark in OF_VIDEOS
    if videos != (frames > 1):
        raise ValueError(
            f"--benchmark={benchmark} scores {'videos' if videos else 'images'}, but samples have"
            f" {frames} frames: change --size"
        )


def _write_texts(out: Path, wanted: Layout, folders: set[str]) -> None:
    """Write the text files of the given folders."""
    from ..data.files import write_text

    for name, text in wanted.texts.items():
        if Path(name).parts[0] in folders:
            write_text(out / name, text)
