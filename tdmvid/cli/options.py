"""Options that several commands share; imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sampling.sample import Sampler

VERBOSE_OPTION = "--verbose"
STUDENT = "a run's lora/ or student/ folder, or an exported one"


def add_config(
    parser: argparse.ArgumentParser, *, example: str, required: bool = True, default: str = ""
) -> None:
    """Add the options that name a JSON config and override its settings.

    Args:
        example: the name of a ready config.
        required: whether it must be named.
        default: what is taken if it is not.
    """
    other = f" (default: {default})" if default else ""
    parser.add_argument(
        "--config",
        required=required,
        help=f"a JSON file or the name of a ready one, e.g. {example}{other}",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override one setting; may be given again",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is sampled, and how; see tdmvid/sampling/."""
    parser.add_argument("--lora", type=Path, help=f"{STUDENT}; without it the teacher samples")
    parser.add_argument(
        "--model", help="a diffusers folder or hub id (default: the base that the student names)"
    )
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--variant", help="of the base's weight files, e.g. fp16")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="default: the student's, or bfloat16 on a GPU and float32 on a CPU",
    )
    parser.add_argument(
        "--size",
        metavar="FxHxW",
        help="frames x height x width, e.g. 49x480x720 (default: what the student was trained on)",
    )
    parser.add_argument(
        "--fps", type=int, help="frames per second of the files (default: the student's, or 8)"
    )
    parser.add_argument("--steps", type=int, help="default: the student's, or the stock pipeline's")
    parser.add_argument(
        "--condition-steps",
        type=int,
        metavar="K",
        help="of a run over several K: sample with the student that was told K, with any --steps",
    )
    parser.add_argument(
        "--cfg",
        type=float,
        help="guidance scale (default: 1, off, for a student; the stock pipeline's for a teacher)",
    )
    parser.add_argument(
        "--cfg-2", type=float, help="guidance scale of a teacher's second expert (default: --cfg)"
    )
    parser.add_argument(
        "--negative", default="", metavar="TEXT", help="the prompt that guidance leads away from"
    )
    parser.add_argument(
        "--shift",
        type=float,
        default=0.0,
        help="flow shift of a teacher's times (default: that of the model's own scheduler)",
    )
    parser.add_argument("--batch", type=int, default=1, help="samples at a time on each rank")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("cache/embeddings"),
        help="where text embeddings are kept",
    )
    add_launched(parser)


def base_of(args: argparse.Namespace) -> dict:
    """Return those options of `add_sampler` that `sampling.load_for_sampling` reads."""
    names = ("model", "revision", "variant", "dtype", "size", "fps")
    return {"student": student_of(args)} | {name: getattr(args, name) for name in names}


def student_of(args: argparse.Namespace) -> Path | None:
    """Return the folder of the student to sample with; None for the teacher.

    Raises:
        ValueError: --condition-steps names a K that no student beside --lora was trained for.
    """
    from ..adapters.bundle import find_condition, read_facts

    if args.condition_steps is None:
        return args.lora
    if args.lora is None:
        raise ValueError(
            f"--condition-steps={args.condition_steps}: a teacher is not told the number of steps:"
            " give --lora"
        )
    read_facts(args.lora)  # refuses what is no student's folder
    return find_condition(args.lora, args.condition_steps)


def sampler_of(args: argparse.Namespace) -> Sampler:
    """Return the sampler that the options of `add_sampler` describe."""
    from ..sampling.sample import Sampler

    return Sampler(student_of(args), args.steps, args.cfg, args.negative, args.shift, args.cfg_2)


def add_evaluation(parser: argparse.ArgumentParser, *, example: str, folder: str) -> None:
    """Add the options of a command that scores a student beside its teacher by a config of its own.

    Args:
        example: the name of a ready config.
        folder: where it writes by default, beside the student.
    """
    add_config(
        parser, example=example, required=False, default="that of the student's run or family"
    )
    parser.add_argument(
        "--lora", type=Path, help=f"{STUDENT} (default: that of the newest finished run in runs/)"
    )
    parser.add_argument("--out", type=Path, help=f"default: {folder}/ beside the LoRA")
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="say what can be scored with what is here, and stop",
    )
    add_launched(parser)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add the option that shows what libraries print.

    `main` also looks for it among the words: the parser of a part of a command forgets what that of
    the command has found.
    """
    parser.add_argument(
        VERBOSE_OPTION, action="store_true", help="show all warnings and messages of libraries"
    )


def add_launched(parser: argparse.ArgumentParser) -> None:
    """Accept what the deepspeed launcher passes."""
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def output_dir(args: argparse.Namespace, folder: str) -> Path:
    """Return where a command with `add_evaluation` writes; ValueError without a student."""
    if args.lora is None:
        raise ValueError("--lora is not given: the lora/ or student/ folder of a finished run")
    return args.out or args.lora.parent / folder
