"""Compare the students of a run with several K, each sampled with several numbers of steps.

    tdmvid score conditions runs/X/lora --prompt "a red ring moving left" --steps 1 2 4 8 --cfg 2 \\
        --out grid

The run has `objective.step_set` and exported a student for each K. The teacher's samples are the
reference. For students of the embedded teacher, every cell also has scores on the shapes world. The
page is conditions.html; conditions.json has the numbers, conditions.jpg one picture of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .given import refuse_ignored
from .options import STUDENT, output_folder
from .sampler_options import add_base, add_cache, given_base

if TYPE_CHECKING:
    from ..backbones.base import Backbone
    from ..scoring.conditions import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid score conditions` to a parser."""
    parser.add_argument("lora", type=Path, help=STUDENT)
    parser.add_argument("--out", type=output_folder, required=True, help="output directory")
    add_base(parser)
    parser.add_argument("--prompt", action="append", required=True, help="can be repeated")
    parser.add_argument("--count", type=int, default=8, help="seeds per prompt")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of sampling steps"
    )
    parser.add_argument(
        "--teacher-steps", type=int, default=50, help="sampling steps of the teacher"
    )
    parser.add_argument(
        "--cfg",
        type=float,
        help="guidance scale of the teacher (default: that of the student's training)",
    )
    parser.add_argument(
        "--captions", type=int, default=64, help="captions of the scores on the shapes world"
    )
    parser.add_argument(
        "--reference",
        type=int,
        default=4096,
        help="ground-truth videos of the Fréchet distance on the shapes world",
    )
    parser.add_argument("--batch", type=int, default=8, help="samples per batch")
    add_cache(parser)


def run(args: argparse.Namespace) -> None:
    """Sample all combinations and write the page.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the run has no students for other numbers of steps, or an option is invalid.
    """
    from ..adapters.bundle import find_conditions
    from ..parallel import launch
    from ..sampling.shots import plan_shots
    from ..sampling.side_by_side import teacher_of
    from ..sampling.student import load_for_sampling
    from ..scoring.conditions import PAGE, sample_conditions, table

    if args.reference < 2:
        raise ValueError(f"--reference {args.reference}: use at least two ground-truth videos")
    students = find_conditions(args.lora)
    if len(students) < 2:
        raise ValueError(
            f"{args.lora} has no students for other numbers of steps next to it: use a student of a"
            " run with objective.step_set"
        )
    world = launch.start_alone()
    backbone = load_for_sampling(world, student=args.lora, **given_base(args))
    shots = plan_shots(args.prompt, range(args.count), frames=backbone.size.frames)
    grid = sample_conditions(
        students,
        args.steps,
        shots,
        args.out,
        backbone=backbone,
        world=world,
        teacher=teacher_of(backbone, args.lora, steps=args.teacher_steps, cfg=args.cfg),
        batch=args.batch,
        cache=args.cache,
        further=_judged(backbone, args),
    )
    for row in table(grid):
        print("  ".join(row))
    print(f"page: {args.out / PAGE}")


def _judged(backbone: Backbone, args: argparse.Namespace) -> Scores | None:
    """Return scores on the shapes world for a student of the embedded teacher, otherwise None."""
    from ..shapes import TEACHER, evaluate

    if backbone.folder.resolve() != TEACHER.resolve():
        why = "on a student of another teacher than the embedded one"
        refuse_ignored(args, ("captions", "reference"), why)
        return None
    evaluation = evaluate.Evaluation(
        backbone, evaluate.Protocol(captions=args.captions, reference=args.reference)
    )

    def scores(student: Path | None, steps: int, cfg: float) -> dict[str, str]:
        row = evaluation.score(evaluate.ScoredSampler("sampling", steps, cfg, student))
        found = {name: score["value"] for name, score in row["metrics"].items()}
        return {
            "right": f"{found['all']:.1%}",
            "Fréchet distance": f"{found['frechet']:.2f}",
            "diversity": f"{found['diversity']:.2f}",
        }

    return scores
