"""Sample prompts with a teacher or a few-step student.

    tdmvid sample --lora runs/shapes_4nfe/lora --prompts prompts.txt --seeds 0,1 --out videos
    tdmvid sample --lora runs/cogvideox5b_i2v_4nfe/lora --prompts items.csv --out videos
    tdmvid sample --lora runs/cogvideox5b_i2v_4nfe/lora --prompts prompts.txt --images stills \\
        --out videos
    tdmvid sample --model THUDM/CogVideoX-2b --size 49x480x720 --prompts prompts.txt \\
        --steps 50 --cfg 6 --out teacher
    tdmvid sample --model Wan-AI/Wan2.2-TI2V-5B-Diffusers --pipeline WanImageToVideoPipeline \\
        --size 121x704x1280 --prompts items.csv --cfg 5 --out teacher
    torchrun --nproc_per_node 8 -m tdmvid sample --lora runs/X/lora --prompts prompts.txt \\
        --batch 4 --out videos
    python launch/sample.py --lora runs/shapes_4nfe/lora --prompts prompts.txt --out videos

An image-to-video model starts from an image: from the column `image` of the table of prompts, or
from --images. An image of another size is scaled to cover the video size, and center-cropped.

The scheduler next to the LoRA defines the timesteps. The noise of a video depends only on its seed
and prompt. Running the same command again makes only missing files, also after prompts or seeds
were added at the end. If prompts have moved in their list, use another --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .given import refuse_ignored
from .options import output_folder, refuse_ignored_of_prompts
from .sampler_options import add_sampler, base_of, refuse_images, sampler_of

if TYPE_CHECKING:
    from ..data.items import Item


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid sample` to a parser."""
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        help=".txt (one prompt per line), .jsonl, .csv or .parquet file",
    )
    parser.add_argument(
        "--column", default="prompt", help="prompt column of a .jsonl, .csv or .parquet file"
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="first frames for an image-to-video model: a folder that this command has filled from"
        " the same prompts, a folder with one image (or video) per prompt, sorted by name, or one"
        " file for all prompts",
    )
    parser.add_argument(
        "--image-column",
        default="image",
        help="image column of a .jsonl, .csv or .parquet file, if --images is not used",
    )
    parser.add_argument("--out", type=output_folder, required=True, help="output directory")
    parser.add_argument(
        "--seeds", default="0", help="seeds of each prompt, e.g. 0,1,2 (default: 0)"
    )
    parser.add_argument(
        "--names",
        choices=["index", "prompt"],
        default="index",
        help="file names: 00012_a-red-ring-0.mp4 (index), or {prompt}-{seed}.mp4 for VBench",
    )
    add_sampler(parser)


def run(args: argparse.Namespace) -> None:
    """Make missing samples.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If prompts, images, the student or an option are invalid.
    """
    from ..parallel import launch
    from ..sampling.manifest import check_names, count_others
    from ..sampling.sample import check_sampler, sample_videos
    from ..sampling.shots import plan_shots, read_seeds
    from ..sampling.student import load_for_sampling

    seeds, sampler = read_seeds(args.seeds), sampler_of(args)
    check_sampler(sampler)
    _check_files(args)
    # Ranks wait for the last video of the slowest rank.
    world = launch.start("auto", timeout_minutes=24 * 60)
    backbone = load_for_sampling(world, **base_of(args))
    if not args.lora:  # a student was trained for one of the pipelines
        refuse_images(args, ["images", "image_column"], backbone)
    items = _items(args, takes_images=backbone.takes_images)
    shots = plan_shots(items, seeds, frames=backbone.size.frames, naming=args.names)
    if world.primary:
        check_names(args.out, shots)
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
        print(f"{len(shots)} samples and manifest.jsonl are in {args.out}")
        if others := count_others(args.out, shots):
            print(
                f"{args.out} also has {others} sample{'s' * (others != 1)} of other prompts or"
                " seeds, which `score samples` and `study make` count: use another --out to keep"
                " them apart"
            )
    launch.finish()


def _check_files(args: argparse.Namespace) -> None:
    """Check prompts and images before the base is loaded, which can be a long download."""
    from ..data.items import find_images
    from ..data.prompts import read_prompts

    prompts = read_prompts(args.prompts, column=args.column)
    refuse_ignored_of_prompts(args, args.prompts, ["column", "image_column"])
    if args.images:
        refuse_ignored(args, ["image_column"], "with --images")
        find_images(args.images, prompts, setting="--images")


def _items(args: argparse.Namespace, *, takes_images: bool) -> list[Item]:
    """Return the prompts, with their images if the model takes images."""
    from ..config import PromptConfig
    from ..data.items import find_images, pair_items, read_items
    from ..data.prompts import read_prompts

    if takes_images and not args.images:
        table = PromptConfig(
            path=str(args.prompts), column=args.column, image_column=args.image_column
        )
        return read_items(table, images=True, remedy="or add images with --images")
    if not takes_images:
        refuse_ignored(args, ["image_column"], "because this model takes no image")
    prompts = read_prompts(args.prompts, column=args.column)
    images = find_images(args.images, prompts, setting="--images") if args.images else []
    return pair_items(prompts, images, takes_images=takes_images, setting="--images")
