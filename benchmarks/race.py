"""Train with several call patterns for the same time, and compare how close the students are to the
teacher.

First, the number of iterations that fit into the time is measured, alternating between patterns.
Each student is then trained for its own number of iterations, with a learning rate that decays to 0
at the end. With --results every result is stored immediately, and a second start continues where
the first stopped.

    python -m benchmarks.race toy --seconds 20 --seeds 3
    python -m benchmarks.race shapes --seconds 100 --seeds 4 --results race.json
    python -m benchmarks.race shapes --patterns stop stream "stream, shared draw"
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import toy as mixture
from benchmarks.options import parse
from benchmarks.published import published
from benchmarks.race_results import Results, Student
from benchmarks.stopwatch import alternate, report
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.distill.iteration import Outcome, iterate
from tdmvid.distill.objective import build_objective
from tdmvid.parallel import launch
from tdmvid.shapes import score, world
from tdmvid.shapes.judge import features, load_judge
from tdmvid.shapes.metrics import frechet_distance
from tdmvid.train.run import Run, build_run
from tdmvid.train.samples import sample_student
from tdmvid.train.trainer import micro_batches

Table = tuple[str, list[str], list[list[object]]]


@dataclass(frozen=True)
class Pattern:
    """An iteration function, options of its objective, and the number of micro-batches that its
    batch is split into.
    """

    iteration: Callable[..., Any] = iterate
    options: dict[str, Any] = field(default_factory=dict)
    micros: int = 1


PATTERNS = {
    "published pattern": Pattern(published, {"rollout": "full", "draws": "own"}),
    **{
        f"{rollout}{', shared draw' * (draws == 'shared')}": Pattern(
            options={"rollout": rollout, "draws": draws}
        )
        for draws in ("own", "shared")
        for rollout in ("stop", "full", "stream")
    },
    "stream, 2 micro-batches": Pattern(options={"rollout": "stream", "draws": "own"}, micros=2),
    "stream, 2 micro-batches, joint": Pattern(
        options={"rollout": "stream", "draws": "own", "updates": "joint"}, micros=2
    ),
    "stream, joint": Pattern(options={"rollout": "stream", "draws": "own", "updates": "joint"}),
}


def fitting(
    loops: dict[str, Callable[[int], object]], seconds: float, device: torch.device, *, each: int
) -> dict[str, int]:
    """Measure how many iterations of every pattern fit into a time.

    Args:
        loops: Functions that run `each` iterations, by pattern.
        seconds: The time.
        device: Device they run on.
        each: Iterations per call.

    Returns:
        Number of iterations by pattern.
    """
    return {
        name: max(1, round(each * seconds / clock.seconds))
        for name, clock in alternate(loops, repeats=5, device=device).items()
    }


def toy(seconds: float, seeds: int, names: Sequence[str], results: Results) -> Table:
    """Race on the mixture of Gaussians, whose teacher is exact, by the distance to its
    distribution.

    Args:
        seconds: Processor time of each student.
        seeds: Number of seeds.
        names: Patterns to compare.
        results: Results so far.

    Returns:
        Title, columns and rows of a table.
    """
    process, shift, each = mixture.stable_diffusion(), mixture.SHIFTS["vp"], 40
    names = [name for name in names if PATTERNS[name].micros == 1]

    def recipe(name: str, iterations: int, seed: int = 0) -> mixture.Recipe:
        objective = replace(mixture.OBJECTIVE, **PATTERNS[name].options)
        return mixture.Recipe(objective, iterations=iterations, shift=shift, seed=seed)

    start = mixture.pretrained(process, recipe("stop", 0))

    def distilled(name: str, iterations: int, seed: int = 0):
        return mixture.distil(
            process,
            recipe(name, iterations, seed),
            start=start,
            iteration=PATTERNS[name].iteration,
        )

    def measured(name: str, seed: int) -> Student:
        began = time.process_time()
        student = distilled(name, counts[name], seed)
        seconds = time.process_time() - began
        return Student(mixture.score(student, 4, shift=shift), seconds)

    loops = {name: lambda turn, name=name: distilled(name, each) for name in names}
    counts = results.counts(
        f"iterations in {seconds:g} s, toy",
        names,
        lambda: fitting(loops, seconds, torch.device("cpu"), each=each),
    )
    rows = _rows(counts, seeds, names, results, f"{seconds:g} s, toy", measured)
    return (
        f"mixture of Gaussians, {seconds:g} s for each student",
        ["iteration", "iterations", "sliced W2 to the teacher's law", "seconds"],
        rows,
    )


def shapes(
    seconds: float,
    seeds: int,
    names: Sequence[str],
    results: Results,
    overrides: Sequence[str] = (),
    *,
    captions: int = 32,
    each_caption: int = 4,
) -> Table:
    """Race on the embedded teacher, by the Fréchet distance to the teacher's many-step samples.

    The distance uses the judge's features and the same noise.

    Args:
        seconds: Processor time of each student.
        seeds: Number of seeds.
        names: Patterns to compare.
        results: Results so far.
        overrides: Further settings of the run as in `--set`.
        captions: Number of held-out captions.
        each_caption: Videos per caption.

    Returns:
        Title, columns and rows of a table.
    """
    config, alone = load_config("shapes_4nfe", list(overrides)), launch.start("none")

    def built(name: str, **changes: Any) -> Run:
        return build_run(_config(replace(config, **changes), name), alone)

    def calibrated() -> dict[str, int]:
        runs = {name: built(name) for name in names}
        loops = {
            name: lambda turn, name=name: run_iterations(
                runs[name], range(4 * turn, 4 * turn + 4), PATTERNS[name].iteration
            )
            for name in names
        }
        return fitting(loops, seconds, alone.device, each=4)

    def measured(name: str, seed: int) -> Student:
        run = built(name, steps=counts[name], seed=seed)
        began = time.process_time()
        run_iterations(run, range(counts[name]), PATTERNS[name].iteration)
        seconds = time.process_time() - began  # before the score
        return Student(distance(run), seconds)

    results.check("--set", list(overrides))
    counts = results.counts(f"iterations in {seconds:g} s, shapes", names, calibrated)
    distance = Distance(built("stop"), captions, each_caption)
    rows = _rows(counts, seeds, names, results, f"{seconds:g} s, shapes", measured)
    title = f"shapes, {seconds:g} s for each student; {len(distance.z)} videos of held-out captions"
    head = ["iteration", "iterations", "Fréchet distance to the teacher's samples", "seconds"]
    return title, head, rows


def _rows(
    counts: dict[str, int],
    seeds: int,
    names: Sequence[str],
    results: Results,
    where: str,
    measured: Callable[[str, int], Student],
) -> list[list[object]]:
    """Return one row per pattern. All patterns of a seed are measured before the next seed."""
    found = {
        (name, seed): results.get(
            f"{name}, seed {seed}, {where}", lambda name=name, seed=seed: measured(name, seed)
        )
        for seed in range(seeds)
        for name in names
    }
    students = {name: [found[name, seed] for seed in range(seeds)] for name in names}
    return [
        [
            name,
            counts[name],
            ", ".join(f"{distance:.3f}" for distance, _ in students[name]),
            ", ".join(f"{seconds:.0f}" for _, seconds in students[name]),
        ]
        for name in names
    ]


class Distance:
    """Fréchet distance between a student's videos and the many-step samples of a run's teacher.

    It uses held-out captions, the same noise and the judge's features.

    Args:
        run: The run whose teacher is sampled.
        captions: Number of captions.
        each_caption: Videos per caption.
    """

    def __init__(self, run: Run, captions: int, each_caption: int):
        self.backbone, self.judge = run.backbone, load_judge()
        prompts = [
            world.caption(thing) for thing in score.evaluation_set(captions, each_caption, 0)
        ]
        self.cond = run.backbone.encode_prompts(prompts).to(run.world.device)
        self.z = torch.randn(
            (len(prompts), *run.backbone.latent_shape()), generator=torch.Generator().manual_seed(0)
        ).to(run.world.device)
        long = shifted(
            run.config.log.teacher_steps, run.config.log.teacher_shift, run.backbone.process
        )
        self.teacher = self._features(ddim(run.roles.teacher, self.z, self.cond, long))

    def __call__(self, run: Run) -> float:
        return frechet_distance(
            self._features(sample_student(run, self.z, self.cond)), self.teacher
        )

    def _features(self, latents: torch.Tensor) -> torch.Tensor:
        return features(self.judge, self.backbone.decode(latents).cpu())


def _config(config: RunConfig, name: str) -> RunConfig:
    """Return the run with a pattern's options. Its batch is split into micro-batches."""
    pattern = PATTERNS[name]
    batch = replace(
        config.batch, micro=config.batch.micro // pattern.micros, accumulation=pattern.micros
    )
    return replace(config, objective=replace(config.objective, **pattern.options), batch=batch)


def run_iterations(run: Run, steps: range, iteration: Callable[..., Outcome] = iterate) -> None:
    """Train a run without logging, samples and checkpoints.

    Args:
        run: The run.
        steps: Iterations.
        iteration: Iteration function.
    """
    for step in steps:
        options = {} if run.stream is None else {"stream": run.stream}
        outcome = iteration(
            step,
            micro_batches(run, step),
            (run.config.batch.micro, *run.backbone.latent_shape()),
            objective=build_objective(run.config.objective),
            roles=run.roles,
            engines=run.engines,
            grid=run.grid,
            streams=run.streams,
            **options,
        )
        assert outcome.failed is None, outcome


def main() -> None:
    """Run the race."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "teacher", choices=["toy", "shapes"], help="mixture of Gaussians, or the embedded teacher"
    )
    parser.add_argument(
        "--seconds", type=float, default=100.0, help="processor time of each student"
    )
    parser.add_argument("--seeds", type=int, default=2, help="number of students of each pattern")
    parser.add_argument(
        "--patterns",
        nargs="+",
        choices=[*PATTERNS],
        default=[*PATTERNS],
        metavar="NAME",
        help="call patterns to compare (default: all)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting of the shapes run",
    )
    parser.add_argument("--results", type=Path, help="JSON file to store every result in")
    args = parse(parser)
    torch.set_num_threads(1)
    results = Results(args.results)
    if args.teacher == "toy":
        if args.set:
            raise ValueError(f"--set {args.set[0]} has no effect on the race toy: leave it out")
        found = toy(args.seconds, args.seeds, args.patterns, results)
    else:
        found = shapes(args.seconds, args.seeds, args.patterns, results, args.set)
    title, head, rows = found
    report(title, head, rows, device=torch.device("cpu"), path=None)


if __name__ == "__main__":
    run_program(main)
