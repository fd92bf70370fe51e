"""Write the training captions of the shapes world, in its shares of one and two objects.

    python examples/shapes/make_prompts.py

The held-out captions, which eval/shapes_run.py scores, are not among them.
"""

import argparse

import torch

from tdmvid.cli.leave import run_program
from tdmvid.shapes import PROMPTS, world


def main() -> None:
    """Write the captions."""
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
