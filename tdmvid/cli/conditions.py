"""Sample a student of several K with any number of steps under each K: one page with all pairs.

    tdmvid score conditions runs/X/lora --prompt "a red ring moving left" --steps 1 2 4 8 --out grid

The run has `objective.step_set`: it wrote a student for each K. The teacher's samples are the
reference. For a student of the embedded teacher every cell has its scores on the shapes world too.
The page is conditions.html, the figures are in conditions.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .options import STUDENT

if TYPE_CHECKING:
    from ..backbones.base import Backbone
    from ..scoring.conditions import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid score conditions`."""
    parser.add_argument("lora", type=Path, help=STUDENT)
    parser.add_argument("--out", type=Path, required=True, help="a directory")
    parser.add_argument("--prompt", action="append", required=True, help="may be given again")
    parser.add_argument("--count", type=int, default=8, help="seeds of each prompt")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of sampling steps"
    )
    parser.add_argument("--teacher-steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, required=True, help="guidance scale of the teacher")
    parser.add_argument("--captions", type=int, default=64, help="of the shapes world's scores")
    parser.add_argument("--batch", type=int, default=8, help="samples at a time")


def run(args: argparse.Namespace) -> None:
    """Sample all cells and write the page."""
    from ..adapters.bundle import find_conditions, read_facts
    from ..config import check_number
    from ..config.ranges import OPTIONS
    from ..parallel import launch
    from ..sampling.sample import Sampler
    from ..sampling.shots import plan_shots
    from ..sampling.student import load_for_sampling
    from ..scoring.conditions import PAGE, sample_conditions, table

    facts = read_facts(args.lora)
    for name in ("count", "teacher_steps", "steps"):
        for value in args.steps if name == "steps" else [getattr(args, name)]:
            check_number(name, value, OPTIONS["steps"])
    students = find_conditions(args.lora)
    if len(students) < 2:
        raise ValueError(
            f"{args.lora} has no neighbours for other numbers of steps: give a student of a run"
            " with objective.step_set"
        )
    world = launch.start("none")
    backbone = load_for_sampling(world, student=args.lora)
    shots = plan_shots(args.prompt, range(args.count), frames=backbone.size.frames)
    grid = sample_conditions(
        students,
        args.steps,
        shots,
        args.out,
        backbone=backbone,
        world=world,
        teacher=Sampler(steps=args.teacher_steps, cfg=args.cfg),
        batch=args.batch,
        further=_judged(facts, backbone, args.captions),
    )
    for row in table(grid):
        print("  ".join(row))
    print(f"page: {args.out / PAGE}")


def _judged(facts: Mapping, backbone: Backbone, captions: int) -> Scores | None:
    """Return the scores of the shapes world for a student of the embedded teacher, else None."""
    from ..shapes import TEACHER, evaluate

    if backbone.folder.resolve() != TEACHER.resolve():
        return None
    protocol = evaluate.Protocol(captions=captions)

    def scores(student: Path | None, steps: int, cfg: float) -> dict[str, str]:
        sampler = evaluate.ScoredSampler("sampling", steps, cfg, student)
        rows = evaluate.evaluate(backbone, [sampler], protocol)["samplers"]
        found = {name: score["value"] for name, score in rows[-1]["metrics"].items()}
        return {
            "right": f"{found['all']:.1%}",
            "Fréchet distance": f"{found['frechet']:.2f}",
            "diversity": f"{found['diversity']:.2f}",
        }

    return scores
