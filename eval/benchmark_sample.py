"""Sample a public benchmark's prompts into the folders that its own scorer reads.

    python eval/benchmark_sample.py --benchmark geneval --prompts evaluation_metadata.jsonl --seeds
    4 --lora runs/X/lora --out geneval
    python eval/benchmark_sample.py --benchmark hpdv2 --prompts benchmark/ --model M --size
    1x512x512 --steps 50 --cfg 7.5 --out teacher
    torchrun --nproc_per_node 8 eval/benchmark_sample.py ...

Benchmarks: hpdv2, drawbench, coco, geneval, t2v-compbench; their files and folders are listed in
tdmvid/scoring/layouts.py. The same command again makes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmvid.cli.options import add_sampler, base_of  # noqa: E402
from tdmvid.data.files import write_text  # noqa: E402
from tdmvid.parallel import launch  # noqa: E402
from tdmvid.sampling.sample import Sampler, load_for_sampling, sample_videos  # noqa: E402
from tdmvid.scoring.layouts import LAYOUTS, layout  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--benchmark", choices=LAYOUTS, required=True)
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
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        wanted = layout(args.benchmark, args.prompts, seeds=args.seeds)
        shots = wanted.shots[: args.limit or None]
        world = launch.start(
            "auto", timeout_minutes=24 * 60
        )  # ranks wait for the slowest one's last file
        backbone = load_for_sampling(world, **base_of(args))
        videos = args.benchmark == "t2v-compbench"
        if videos != (backbone.size.frames > 1):
            raise ValueError(
                f"{args.benchmark} scores {'videos' if videos else 'images'}, these are of"
                f" {backbone.size.frames} frames: give another --size"
            )
        folders = {str(Path(shot.file).parts[0]) for shot in shots}
        for name, text in wanted.texts.items():
            if world.primary and Path(name).parts[0] in folders:
                write_text(args.out / name, text)
        sample_videos(
            args.out,
            shots,
            backbone=backbone,
            sampler=Sampler(args.lora, args.steps, args.cfg),
            world=world,
            batch=args.batch,
            cache=args.cache,
        )
        if world.primary:
            print(f"{len(shots)} files for the scorer of {args.benchmark} are in {args.out}")
        launch.finish()
    except (ValueError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
