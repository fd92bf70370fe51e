"""Sample prompts with a teacher or a few-step student.

    python launch/sample.py --lora runs/shapes_4nfe/lora --prompts prompts.txt --seeds 0,1 --out
    videos
    python launch/sample.py --model THUDM/CogVideoX-2b --size 49x480x720 --prompts prompts.txt
    --steps 50 --cfg 6 --out teacher
    torchrun --nproc_per_node 8 launch/sample.py --lora runs/X/lora --prompts prompts.txt --batch 4
    --out videos

The scheduler beside the LoRA decides the timesteps. A video's noise depends on its seed and
prompt alone. The same command again makes only what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmvid.cli.options import add_sampler, base_of  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help=".txt (one a line), .jsonl, .csv or .parquet"
    )
    parser.add_argument("--column", default="prompt", help="of a .jsonl, .csv or .parquet file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0", help="e.g. 0,1,2")
    parser.add_argument(
        "--names",
        choices=["index", "prompt"],
        default="index",
        help="00012_a-red-ring-0.mp4, or {prompt}-{seed}.mp4 as VBench reads",
    )
    add_sampler(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        from tdmvid.data.prompts import read_prompts
        from tdmvid.parallel import launch
        from tdmvid.sampling.sample import (
            Sampler,
            load_for_sampling,
            plan_shots,
            read_seeds,
            sample_videos,
        )

        prompts, seeds = read_prompts(args.prompts, column=args.column), read_seeds(args.seeds)
        world = launch.start(
            "auto", timeout_minutes=24 * 60
        )  # ranks wait for the slowest one's last video
        backbone = load_for_sampling(world, **base_of(args))
        shots = plan_shots(prompts, seeds, frames=backbone.size.frames, naming=args.names)
        sampler = Sampler(args.lora, args.steps, args.cfg)
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
            print(f"{len(shots)} files and their manifest.jsonl are in {args.out}")
        launch.finish()
    except (ValueError, OSError) as error:
        sys.exit("error: " + " ".join(str(error).split("\n")))


if __name__ == "__main__":
    main()
