"""Compare the variety of samples: images of many seeds, precision, recall and diversity.

    tdmvid score modes runs/A/lora runs/B/lora --prompt "a red ring" --steps 50 --cfg 2 --out modes
    tdmvid score modes videos/teacher videos/tdm videos/dmd2 --out modes

Students (lora/ or student/ folders of one base and size) and their teacher are sampled from the
same noise. Finished samples in --out are kept, and only those that the call asks for are compared.
Folders of samples are read as they are; the first folder is the reference. The page is modes.html;
modes.json has the numbers, modes.jpg one picture of the first prompt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .given import refuse_ignored
from .options import output_folder
from .sampler_options import BASE, add_base, add_cache, given_base

if TYPE_CHECKING:
    from ..sampling.shots import Shot

OF_STUDENTS = ("prompt", "count", "steps", "cfg", "batch", "cache", *BASE)
"""Options that folders of samples have no use for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid score modes` to a parser."""
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="students, or folders of samples"
    )
    parser.add_argument("--out", type=output_folder, required=True, help="output directory")
    parser.add_argument(
        "--prompt", action="append", default=[], help="prompt for students; can be repeated"
    )
    parser.add_argument("--count", type=int, default=32, help="seeds per prompt")
    parser.add_argument(
        "--steps", type=int, help="sampling steps of the teacher (default: as in its pipeline)"
    )
    parser.add_argument(
        "--cfg",
        type=float,
        help="guidance scale of the teacher (default: that of the first student's training)",
    )
    add_base(parser)
    parser.add_argument("--batch", type=int, default=8, help="samples per batch")
    add_cache(parser)
    parser.add_argument(
        "--neighbours",
        type=int,
        default=3,
        help="neighbours k of precision and recall; each prompt needs more seeds",
    )


def run(args: argparse.Namespace) -> None:
    """Sample students and their teacher, or read folders of samples, and compare them.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If folders are of different kinds, too few, or an option is invalid.
    """
    from ..sampling.shots import plan_shots
    from ..sampling.student import find_size
    from ..scoring import modes, modes_run

    students = [folder for folder in args.folders if modes_run.is_student(folder)]
    folders, names = args.folders, [str(folder) for folder in args.folders]
    shots: list[Shot] = []
    if students:
        if len(students) < len(folders):
            other = next(folder for folder in folders if folder not in students)
            raise ValueError(
                f"{other} is not an exported student, but other folders are: use either students or"
                " folders of samples"
            )
        if not args.prompt:
            raise ValueError("--prompt is missing: add a prompt to sample the students with")
        _check_seeds(args)
        frames = find_size(students[0], None, None)["frames"]
        shots = plan_shots(args.prompt, range(args.count), frames=frames)
        wanted = modes_run.SharedShots(shots, args.steps, args.cfg, args.batch, args.cache)
        folders = modes_run.sample_students(students, args.out, wanted, given_base(args))
        names = ["teacher", *names]
    else:
        refuse_ignored(args, OF_STUDENTS, "with folders of samples, which are read as they are")
        if len(folders) < 2:
            raise ValueError(f"{folders[0]} is the only folder of samples: add at least one more")
    scored = modes.score_modes(
        folders, args.out, names=names, neighbours=args.neighbours, shots=shots
    )
    for row in [modes.HEAD, *modes.table(scored)]:
        print("  ".join(row))
    print(f"page: {args.out / modes.PAGE}")


def _check_seeds(args: argparse.Namespace) -> None:
    """Check the numbers of samples before the base is loaded."""
    if args.count <= args.neighbours:
        raise ValueError(
            f"--neighbours={args.neighbours} needs more seeds per prompt than --count={args.count}:"
            f" use at least --count {args.neighbours + 1}, or fewer neighbours"
        )
