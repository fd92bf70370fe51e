"""Embed a run's prompts once, so that training needs no text encoder.

    python launch/embed_prompts.py --config configs/shapes_4nfe.json

Training does the same by itself when something is missing; this does it ahead, for example
on a machine that has the memory for the text encoder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmvid.config.run import load_config  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="a JSON run, e.g. configs/shapes_4nfe.json"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override one setting; may be given again",
    )
    args = parser.parse_args()
    try:
        from tdmvid.backbones.registry import load_backbone
        from tdmvid.parallel import launch
        from tdmvid.train.setup import embeddings

        config = load_config(args.config, args.set)
        world = launch.start("none", config.parallel.timeout_minutes)
        backbone = load_backbone(config.model, config.video)
        backbone.device = world.device  # of the text encoder; the base stays in host memory
        _, prompts = embeddings(config, backbone, world)
        print(f"{len(prompts)} prompts are embedded in {config.prompts.cache}")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit("error: " + " ".join(str(error).split("\n")))


if __name__ == "__main__":
    main()
