"""Draw a first frame for each training caption of the shapes world.

    python -m examples.shapes.make_frames --out cache/shapes_first_frames

The folder has the layout of `tdmvid sample`, so a run reads it as `prompts.images`. The captions
are those of the prompt list `shapes`; none is held out.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_options
from tdmvid.data.files import write_text
from tdmvid.data.items import MANIFEST
from tdmvid.data.video import write_image
from tdmvid.shapes import PROMPTS, world


def main() -> None:
    """Write the images and their manifest."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the images")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes")
    parser.add_argument(
        "--limit", type=int, default=0, help="lines of the prompt list to use; 0 (default) uses all"
    )
    args = parser.parse_args()
    check_options(vars(args))
    generator = torch.Generator().manual_seed(args.seed)
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    captions, entries = dict.fromkeys(lines[: args.limit or None]), []
    for number, caption in enumerate(tqdm(captions, unit="image")):
        name = f"{number:05d}.png"
        video = world.draw_videos([world.parse(caption)], generator)[0]
        write_image(args.out / name, video[:, 0])
        entries.append(json.dumps({"prompt": caption, "file": name}))
    write_text(args.out / MANIFEST, "\n".join(entries) + "\n")
    print(f"{len(entries)} images: {args.out}")


if __name__ == "__main__":
    run_program(main)
