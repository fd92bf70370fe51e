"""Write the training captions of the shapes world, in its shares of one and two objects.

    python examples/shapes/make_prompts.py

No caption that eval/shapes_run.py scores (the held-out ones) is among them.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shapes import world  # noqa: E402


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    captions = [
        world.caption(things)
        for things in world.draw_captions(2000, torch.Generator().manual_seed(0))
    ]
    path = Path(__file__).with_name("prompts.txt")
    path.write_text("\n".join(captions) + "\n", encoding="utf-8")
    print(f"{len(captions)} captions, {len(set(captions))} different: {path}")


if __name__ == "__main__":
    main()
