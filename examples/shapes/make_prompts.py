"""Write the training captions of the shapes world, in its shares of one and two objects.

    python examples/shapes/make_prompts.py

No caption that eval/shapes_run.py scores (the held-out ones) is among them.
"""

import argparse

import torch

from tdmvid.cli.leave import run_program
from tdmvid.shapes import PROMPTS, world


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    captions = [
        world.caption(things)
        for things in world.draw_captions(2000, torch.Generator().manual_seed(0))
    ]
    path = PROMPTS
    path.write_text("\n".join(captions) + "\n", encoding="utf-8")
    print(f"{len(captions)} captions, {len(set(captions))} different: {path}")


if __name__ == "__main__":
    run_program(main)
