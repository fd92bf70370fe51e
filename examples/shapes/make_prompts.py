"""Write the training captions of the shapes world, in its shares of one and two objects.

    python examples/shapes/make_prompts.py
    python examples/shapes/make_prompts.py --objects two --out runs/two_objects.txt

The held-out captions, which eval/shapes_run.py scores, are not among them.
"""

import argparse
from pathlib import Path

import torch

from tdmvid.cli.leave import Parser, run_program
from tdmvid.data.files import write_text
from tdmvid.shapes import PROMPTS, world

SIZES = {"any": (1, 2), "one": (1,), "two": (2,)}


def main() -> None:
    """Write the captions."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--objects", choices=SIZES, default="any", help="keep captions of so many objects (any)"
    )
    parser.add_argument("--out", type=Path, default=PROMPTS, help="file to write")
    args = parser.parse_args()
    captions = [
        world.caption(things)
        for things in world.draw_captions(2000, torch.Generator().manual_seed(0))
        if len(things) in SIZES[args.objects]
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, "\n".join(captions) + "\n")
    print(f"{len(captions)} captions, {len(set(captions))} different: {args.out}")


if __name__ == "__main__":
    run_program(main)
