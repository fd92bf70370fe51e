"""Draw ground-truth videos of the shapes world, for objectives that need real videos (see
docs/objectives.md).

    python examples/shapes/make_videos.py --count 2000 --out runs/shapes_videos

The captions are training captions in their usual shares. The held-out captions, which
eval/shapes_run.py scores, are not among them.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_options
from tdmvid.data.video import write_video
from tdmvid.shapes import world


def write_videos(out: Path, count: int, *, seed: int = 0) -> None:
    """Draw videos, and write those that are not there yet.

    Args:
        out: Folder for the videos.
        count: Number of videos.
        seed: Seed of captions and videos.
    """
    generator = torch.Generator().manual_seed(seed)
    things = world.draw_captions(count, generator)
    for number, one in enumerate(tqdm(things, unit="video")):
        path, video = out / f"{number:05d}.mp4", world.draw_videos([one], generator)[0]
        if not path.is_file():
            write_video(path, video, fps=8, lossless=True)


def main() -> None:
    """Write the videos."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the videos")
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and videos")
    args = parser.parse_args()
    check_options(vars(args))
    write_videos(args.out, args.count, seed=args.seed)


if __name__ == "__main__":
    run_program(main)
