"""Sample a public benchmark's prompts into the folders that its own scorer reads.

    tdmvid benchmark --benchmark geneval --prompts evaluation_metadata.jsonl --seeds 4 \\
        --lora runs/X/lora --out geneval
    tdmvid benchmark --benchmark hpdv2 --prompts benchmark/ --model M --size 1x512x512 \\
        --steps 50 --cfg 7.5 --out teacher
    torchrun --nproc_per_node 8 -m tdmvid benchmark ...
    python eval/benchmark_sample.py --benchmark geneval ...

Benchmarks: hpdv2, drawbench, coco, geneval, t2v-compbench; their files and folders are listed in
tdmvid/scoring/benchmark_layouts.py. The same command again makes only what is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_sampler, base_of, sampler_of

if TYPE_CHECKING:
    from ..scoring.benchmark_layouts import Layout

BENCHMARKS = ("hpdv2", "drawbench", "coco", "geneval", "t2v-compbench")
OF_VIDEOS = ("t2v-compbench",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid benchmark`."""
    parser.add_argument("--benchmark", choices=BENCHMARKS, required=True)
    parser.add_argument(
        "--prompts", type=Path, required=True, help="the benchmark's own file or folder"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seeds", type=int, default=1, help="images of every prompt; GenEval's own protocol has 4"
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="only the first so many files; 0 makes all"
    )
    add_sampler(parser)


def run(args: argparse.Namespace) -> None:
    """Make the files that the folder lacks, and the texts that the scorer wants beside them."""
    from ..parallel import launch
    from ..sampling.sample import sample_videos
    from ..sampling.student import load_for_sampling
    from ..scoring.benchmark_layouts import layout

    wanted = layout(args.benchmark, args.prompts, seeds=args.seeds)
    shots = wanted.shots[: args.limit or None]
    # Ranks wait for the slowest one's last file.
    world = launch.start("auto", timeout_minutes=24 * 60)
    backbone = load_for_sampling(world, **base_of(args))
    _check_frames(args.benchmark, backbone.size.frames)
    if world.primary:
        _write_texts(args.out, wanted, {str(Path(shot.file).parts[0]) for shot in shots})
    sample_videos(
        args.out,
        shots,
        backbone=backbone,
        sampler=sampler_of(args),
        world=world,
        batch=args.batch,
        cache=args.cache,
    )
    if world.primary:
        print(f"{len(shots)} files for the scorer of {args.benchmark} are in {args.out}")
    launch.finish()


def _check_frames(benchmark: str, frames: int) -> None:
    videos = benchmark in OF_VIDEOS
    if videos != (frames > 1):
        raise ValueError(
            f"{benchmark} scores {'videos' if videos else 'images'}, these are of {frames} frames:"
            " give another --size"
        )


def _write_texts(out: Path, wanted: Layout, folders: set[str]) -> None:
    """Write the texts of these folders alone."""
    from ..data.files import write_text

    for name, text in wanted.texts.items():
        if Path(name).parts[0] in folders:
            write_text(out / name, text)
