"""Options of commands that sample, and what they choose. Imports no large packages."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.paths import expand_home
from .given import refuse_ignored
from .options import STUDENT, add_launched

if TYPE_CHECKING:
    from ..backbones.base import Backbone
    from ..sampling.sample import Sampler

DECODING = ("guidance", "tiling")
"""Options of `add_decoding`."""
BASE = ("model", "revision", "variant", "pipeline", "dtype", *DECODING)
"""Options of `add_base`."""


def add_base_files(parser: argparse._ActionsContainer) -> None:
    """Add the options of a base's files and pipeline to a parser or group.

    Without them, those that the student names are loaded, or the model's own.
    """
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--variant", help="variant of the base's weight files, e.g. fp16")
    parser.add_argument(
        "--pipeline",
        metavar="CLASS",
        help="pipeline class to use instead of the model's or the student's own, e.g."
        " WanImageToVideoPipeline for Wan 2.2 TI2V-5B with images",
    )


def add_decoding(parser: argparse._ActionsContainer) -> None:
    """Add the options of a base that change how it computes, to a parser or group.

    Without them, those that the student names are used, or the model's own.
    """
    parser.add_argument(
        "--guidance",
        type=float,
        help="guidance scale that the network of FLUX.1 reads (default: that of the student, or"
        " 3.5)",
    )
    parser.add_argument(
        "--tiling",
        action=argparse.BooleanOptionalAction,
        help="decode in overlapping tiles, which needs less memory (default: as the student, or"
        " not)",
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """Add the options of a student's base to a parser: model, files, data type and decoding."""
    parser.add_argument(
        "--model",
        type=expand_home,
        help="diffusers folder or hub id (default: the base of the student)",
    )
    add_base_files(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="data type (default: that of the student, or bfloat16 on a GPU and float32 on a CPU)",
    )
    add_decoding(parser)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add the option `--cache` of the text embeddings to a parser."""
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("cache/embeddings"),
        help="folder of cached text embeddings",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling to a parser: model, size, and sampler; see tdmvid/sampling/."""
    parser.add_argument("--lora", type=Path, help=f"{STUDENT}; without it, the teacher is sampled")
    add_base(parser)
    parser.add_argument(
        "--size",
        metavar="FxHxW",
        help="frames x height x width, e.g. 49x480x720 (default: the training size; 9x64x64 for the"
        " embedded teacher)",
    )
    parser.add_argument(
        "--fps", type=int, help="frames per second of the files (default: as in training, or 8)"
    )
    _add_steps(parser)
    _add_guidance(parser)
    parser.add_argument("--batch", type=int, default=1, help="samples per batch on each rank")
    add_cache(parser)
    add_launched(parser)


def _add_steps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--steps", type=int, help="sampling steps (default: those of the student or the pipeline)"
    )
    parser.add_argument(
        "--condition-steps",
        type=int,
        metavar="K",
        help="use the student of a run with several K that is conditioned on K, with any --steps",
    )


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg",
        type=float,
        help="classifier-free guidance scale, 1 is off (default: 1 for a student, that of the"
        " pipeline for a teacher); FLUX.1's true_cfg_scale, Z-Image's guidance_scale plus 1",
    )
    parser.add_argument(
        "--cfg-2", type=float, help="guidance scale of a teacher's second expert (default: --cfg)"
    )
    parser.add_argument("--negative", default="", metavar="TEXT", help="negative prompt")
    parser.add_argument(
        "--shift",
        type=float,
        default=0.0,
        help="flow shift of a teacher's times (default: that of the model's scheduler)",
    )


def given_base(args: argparse.Namespace) -> dict:
    """Select the options of `add_base` as arguments of `load_for_sampling`.

    Args:
        args: Parsed options.

    Returns:
        Keyword arguments.
    """
    return {name: getattr(args, name) for name in BASE}


def base_of(args: argparse.Namespace) -> dict:
    """Select the options of `add_sampler` that `sampling.load_for_sampling` needs.

    Args:
        args: Parsed options.

    Returns:
        Keyword arguments of `load_for_sampling`.

    Raises:
        ValueError: If an option is invalid, or has no effect.
    """
    student = student_of(args)
    if student is not None:
        _require_base(args, student)
    refuse_fps_of_images(args, student)
    return {"student": student, "size": args.size, "fps": args.fps} | given_base(args)


def _require_base(args: argparse.Namespace, student: Path) -> None:
    """Refuse a student without export.json, unless options give what it would state."""
    from ..adapters.bundle import require_facts
    from ..config.resources import find_embedded_size

    size = args.size or find_embedded_size(args.model) or None
    require_facts(student, {"--model": args.model, "--size": size, "--steps": args.steps})


def refuse_fps_of_images(args: argparse.Namespace, student: Path | None) -> None:
    """Refuse `--fps` for images.

    Args:
        args: Parsed options, with `fps` and `size`.
        student: Folder of the student.

    Raises:
        ValueError: If it is given, and samples have one frame.
    """
    if "fps" in args.given:
        from ..sampling.student import find_size

        if find_size(student, args.size, args.model)["frames"] == 1:
            refuse_ignored(args, ["fps"], "on images")


def refuse_images(args: argparse.Namespace, names: Iterable[str], backbone: Backbone) -> None:
    """Refuse options of images for a base that takes none.

    Args:
        args: Parsed options.
        names: Names of these options.
        backbone: The base.

    Raises:
        ValueError: If one of them is given; it names `--pipeline` if the base takes images with it.
    """
    from ..backbones.registry import families

    given = [name for name in names if name in args.given]
    if backbone.takes_images or not given:
        return
    others = [
        name
        for name, family in families().items()
        if backbone.pipeline_class in family.also_opens
        and not family.spec.find_obstacle(backbone.folder)
    ]
    remedy = f"add --pipeline {others[0]}, or remove it" if others else "remove it"
    refuse_ignored(args, given, "because this model takes no image", remedy=remedy)


def student_of(args: argparse.Namespace) -> Path | None:
    """Find the folder of the student to sample with.

    Args:
        args: Parsed options of `add_sampler`.

    Returns:
        The folder, or None for the teacher.

    Raises:
        ValueError: If no student next to `--lora` was trained for `--condition-steps`.
    """
    from ..adapters.bundle import find_condition, read_facts

    if args.condition_steps is None:
        return args.lora
    if args.lora is None:
        raise ValueError(
            f"--condition-steps={args.condition_steps} has no effect on a teacher, which is not"
            " conditioned on the number of steps: add --lora"
        )
    read_facts(args.lora)  # raises an error if it is not a student
    return find_condition(args.lora, args.condition_steps)


def sampler_of(args: argparse.Namespace) -> Sampler:
    """Build the sampler from the options of `add_sampler`.

    Args:
        args: Parsed options.

    Returns:
        The sampler.
    """
    from ..sampling.sample import Sampler

    return Sampler(student_of(args), args.steps, args.cfg, args.negative, args.shift, args.cfg_2)
