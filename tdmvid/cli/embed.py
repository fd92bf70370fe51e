"""Embed the prompts of a run once, so that training needs no text encoder.

    tdmvid embed --config cogvideox2b_4nfe
    python launch/embed_prompts.py --config configs/cogvideox2b_4nfe.json

Training also embeds missing prompts. Use this command to embed them in advance, for example on a
machine with enough memory for the text encoder.
"""

from __future__ import annotations

import argparse

from .options import add_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid embed` to a parser."""
    add_config(parser, example="cogvideox2b_4nfe or configs/shapes_4nfe.json")


def run(args: argparse.Namespace) -> None:
    """Embed the prompts that are missing in the cache.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the config or the prompts are invalid.
    """
    from ..config import load_config

    config = load_config(args.config, args.set)
    from ..adapters.teacher import load_teacher
    from ..backbones.registry import find_family
    from ..data.items import read_run_items
    from ..parallel import launch
    from ..train.prepare import prepare_embeddings

    world = launch.start_alone()
    _, family = find_family(config.model, weights=False)
    read_run_items(config, takes_images=family.takes_images)  # check before the base is loaded
    backbone = load_teacher(config.model, config.video)  # its LoRAs may change the text encoder
    backbone.device = world.device  # for the text encoder; the base stays in host memory
    _, prompts = prepare_embeddings(config, backbone, world)
    print(f"embeddings of {len(prompts)} prompts are in {config.prompts.cache}")
