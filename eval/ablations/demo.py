"""The demo suite: the demo over training seeds, beside variants of its settings with equal
iterations and other methods in equal processor time.

Shapes: N videos of an evaluation, `CAPTIONS * EACH`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from benchmarks.race import run_iterations
from benchmarks.stopwatch import alternate
from tdmvid.adapters.teacher import load_teacher
from tdmvid.config import ModelConfig, RunConfig, load_config
from tdmvid.parallel import launch
from tdmvid.scoring.intervals import Measure, mean_over_groups
from tdmvid.shapes import TEACHER, evaluate, score
from tdmvid.shapes.judge import attributes
from tdmvid.train.run import Run, build_run
from tdmvid.train.samples import sample_student

from . import loops
from .page import Claim, Table
from .shapes import BASE, DMD2, METHODS, ROOT, Row, train

DEMO = ROOT / "configs" / "shapes_4nfe.json"
EVALUATIONS = (0, 1)
"""Seeds of the evaluations: captions, noise and ground truth."""
CAPTIONS, EACH = 256, 4
"""Captions of an evaluation, and videos of each caption."""
REFERENCE = 4096
"""Ground-truth videos of the Fréchet distance."""
BATCH = 64
ITERATIONS, ROUNDS = 4, 3
"""Iterations that are timed together, and their repetitions."""
COLUMNS = {"all": "right", "frechet": "distance", "diversity": "diversity"}


@dataclass(frozen=True)
class Teacher(Row):
    """The teacher with many steps, which is not trained."""

    most_seeds: ClassVar[int] = 1


@dataclass(frozen=True)
class Variant(Row):
    """The demo with another setting and its number of iterations, with fewer training seeds."""

    most_seeds: ClassVar[int] = 3


@dataclass(frozen=True)
class Other(Row):
    """Another method in the processor time of the demo, with fewer training seeds."""

    most_seeds: ClassVar[int] = 3


CONSISTENCY = (*BASE, "student.lr=3e-4")
"""Of the rates 3e-5, 1e-4, 3e-4 and 8e-4 the one with the smallest distance, with one training seed
that is not reported.
"""
TEACHER_ROW, DEMO_ROW = "teacher, 50 steps, guidance 2", "TDM (the demo)"
ROWS = [
    Teacher("teacher", TEACHER_ROW),
    Row("demo", DEMO_ROW),
    Other("other", "DMD2, 5 fake updates", (*BASE, DMD2), ("renoise",)),
    Other("other", "consistency distillation", CONSISTENCY, ("renoise",), method="consistency"),
    Other("other", "published call pattern", BASE, method="published"),
    Variant("match", "match clean", ("objective.match=clean",)),
    Variant("importance", "no importance", ("objective.importance=none",)),
    *(
        Variant("fake's rate", f"fake's rate {ratio} x", (f"fake.lr={ratio * 8e-4:g}",))
        for ratio in (2, 5, 10)
    ),
]


class DemoSuite(Table):
    """The demo and other methods: accuracy, Fréchet distance and diversity of two evaluations.

    Args:
        iterations: Iterations of the demo; 0 for those of its config.
    """

    page, title = "ablations_demo.md", "The demo over seeds, and other methods"
    note = f"""Every student has 4 steps. Each evaluation has {CAPTIONS * EACH:,} videos of held-out
captions, with captions and noise of its own. `right` is the share of videos with every attribute of
their caption. The distance is the Fréchet distance to the ground truth. The variants of the demo
change what their name says and nothing else. The demo's fake has 2.5 times the student's rate. The
other methods train for as many iterations as fit into the processor time of the demo. This number
is measured on each run, by alternating iterations of both. Seconds of different machines differ, so
compare iterations. Other methods and variants have at most {Other.most_seeds} training seeds. DMD2,
without its adversarial term, and the published call pattern have the demo's learning rates; no rate
was searched for them. Consistency distillation has the best of four rates (3e-4). It needs real
videos: it starts from noised latents of 512 clips of ground truth."""

    def __init__(self, iterations: int = 0):
        self.iterations = iterations or load_config(DEMO).steps
        self.columns = {
            f"{key}/{seed}": f"{label}, evaluation {seed}"
            for seed in EVALUATIONS
            for key, label in COLUMNS.items()
        } | {"iterations": "iterations", "seconds": "processor seconds of training"}

    def settings(self) -> dict:
        """Return the settings that all rows share.

        Returns:
            Settings by name.
        """
        return {
            "suite": "demo",
            "iterations": self.iterations,
            "captions": CAPTIONS,
            "videos": CAPTIONS * EACH,
            "reference": REFERENCE,
            "evaluations": list(EVALUATIONS),
        }

    def rows(self) -> list[Row]:
        """Return the rows in the order of the table.

        Returns:
            Rows of the table.
        """
        return ROWS

    def claims(self) -> list[Claim]:
        """Return that the demo ends closer to the ground truth than other methods and variants.

        Returns:
            Claims to check.
        """
        key = "frechet/0"
        return [
            Claim(f"TDM ends closer than {row.name}", (DEMO_ROW, key), (row.name, key))
            for row in ROWS
            if isinstance(row, (Other, Variant))
        ]

    def sections(self, results: dict) -> list[str]:
        """Compare every student with the teacher, video by video.

        Args:
            results: Results by row.

        Returns:
            Lines of a section; none without results of the teacher.
        """
        if not results.get(TEACHER_ROW):
            return []
        (teacher,) = results[TEACHER_ROW]
        lines = [
            "## Every student beside its teacher",
            "",
            "Differences of `right` are in points, with a 95 % bootstrap interval over captions."
            " Distance and diversity are relative to the teacher's.",
            "",
            "| method | training seed | evaluation | right, student - teacher | distance |"
            " diversity |",
            "|---|---|---|---|---|---|",
        ]
        for name, students in results.items():
            if name == TEACHER_ROW:
                continue
            for number, student in enumerate(students):
                for seed in EVALUATIONS:
                    gap = difference(student, teacher, seed)
                    distance, diversity = (
                        student[f"{key}/{seed}"] / teacher[f"{key}/{seed}"]
                        for key in ("frechet", "diversity")
                    )
                    lines.append(
                        f"| {name} | {student.get('seed', number)} | {seed} |"
                        f" {gap.text('+.1f', scale=100)} |"
                        f" {distance:.2f} x | {diversity:.2f} x |"
                    )
        return [*lines, "", *_counts(results, teacher), ""]

    def measure(self, row: Row, seed: int) -> dict:
        """Train a row, and score it with every evaluation.

        Args:
            row: Row of the table.
            seed: Seed of the run.

        Returns:
            Values by column, and by evaluation which videos are right.
        """
        if row.name == TEACHER_ROW:
            backbone = load_teacher(ModelConfig(path=str(TEACHER)), evaluate.SIZE)
            sampler = evaluate.ScoredSampler("teacher", 50, 2.0)
            return _score(backbone, lambda evaluation: evaluation.sample(sampler)[0])
        name = f"{row.name.replace(' ', '_').replace(',', '')}_{seed}"
        changes = [
            f"out={ROOT / 'runs' / 'ablations' / 'demo_runs' / name}",
            f"seed={seed}",
            "log.sample_every=0",
            "log.keep_checkpoints=1",
            "evaluate={}",
            *row.changes,
        ]
        steps, began = self.iterations, load_config(DEMO, changes).folder / "config.json"
        if isinstance(row, Other):  # an earlier start has measured the number already
            steps = (
                load_config(began).steps
                if began.is_file()
                else fitting(load_config(DEMO, changes), row.method, steps)
            )
        config = load_config(DEMO, [*changes, f"steps={steps}"])

        def figures(run: Run) -> dict:
            return {"seed": seed, "iterations": float(steps)} | _score(
                run.backbone, lambda evaluation: _videos(run, evaluation, row.solvers[0])
            )

        return train(config, row.method, figures)


def fitting(config: RunConfig, method: str, iterations: int) -> int:
    """Return how many iterations of a method take the processor time of the demo.

    Args:
        config: Settings of the method's run.
        method: A method of METHODS; "" for the objective of the config.
        iterations: Iterations of the demo.

    Returns:
        Number of iterations, at least 1.
    """
    demo = build_run(load_config(DEMO, [f"out={config.out}"]), launch.start("none"))
    other = loops.start(config)
    turn = METHODS[method](other) if method else None

    def in_demo(round_: int) -> None:
        run_iterations(demo, range(ITERATIONS * round_, ITERATIONS * (round_ + 1)))

    def in_other(round_: int) -> None:
        for step in range(ITERATIONS * round_, ITERATIONS * (round_ + 1)):
            if turn is None:
                run_iterations(other, range(step, step + 1))
            else:
                loops.iterate(other, turn, step)

    times = alternate(
        {"demo": in_demo, "other": in_other}, repeats=ROUNDS, device=torch.device("cpu")
    )
    return max(1, round(iterations * times["demo"].seconds / times["other"].seconds))


@torch.no_grad()
def _videos(run: Run, evaluation: evaluate.Evaluation, solver: str) -> torch.Tensor:
    """Sample the student of a run with the captions and noise of an evaluation."""
    parts = []
    for start in range(0, len(evaluation.z), BATCH):
        rows = slice(start, start + BATCH)
        parts.append(
            sample_student(
                run, evaluation.z[rows], evaluation.cond.rows(rows), grid=run.grid, solver=solver
            )
        )
    return evaluate.decode(run.backbone, torch.cat(parts))


@torch.no_grad()
def _score(backbone, videos: Callable[[evaluate.Evaluation], torch.Tensor]) -> dict:
    """Return scores by column and evaluation, and as digits which of N videos are right."""
    found: dict = {}
    for seed in EVALUATIONS:
        protocol = evaluate.Protocol(CAPTIONS, EACH, REFERENCE, seed)
        evaluation = evaluate.Evaluation(backbone, protocol)
        drawn = videos(evaluation)
        scores = evaluation.measure(drawn)
        found |= {f"{key}/{seed}": float(scores[key]["value"]) for key in COLUMNS}
        right = attributes(evaluation.judge, drawn.float().clamp(-1, 1), evaluation.things)["all"]
        found[f"videos/{seed}"] = "".join(str(int(each)) for each in right)
    return found


def difference(ours: dict, theirs: dict, seed: int) -> Measure:
    """Compare the shares of right videos of two samplers.

    Args:
        ours, theirs: Results.
        seed: The evaluation.

    Returns:
        Share of ours minus that of theirs, with a bootstrap interval over captions.
    """
    a, b = (
        torch.tensor([float(digit) for digit in result[f"videos/{seed}"]])
        for result in (ours, theirs)
    )
    things = score.evaluation_set(CAPTIONS, EACH, seed)
    return mean_over_groups(a - b, score.number_captions(things))


def _counts(results: dict, teacher: dict) -> list[str]:
    """Return the means over seeds and evaluations, and how often the demo reaches its goals."""
    lines = []
    for name, students in results.items():
        if name == TEACHER_ROW or not students:
            continue
        cases = [(student, seed) for student in students for seed in EVALUATIONS]
        gaps = [difference(student, teacher, seed) for student, seed in cases]
        ratios = {
            key: [student[f"{key}/{seed}"] / teacher[f"{key}/{seed}"] for student, seed in cases]
            for key in ("frechet", "diversity")
        }
        mean = statistics.mean
        lines.append(
            f"* {name}: on average {100 * mean(gap.value for gap in gaps):+.1f} points,"
            f" {mean(ratios['frechet']):.2f} x the distance and"
            f" {mean(ratios['diversity']):.2f} x the diversity. Of {len(cases)} evaluations,"
            f" {sum(gap.high >= 0 for gap in gaps)} are not clearly below the teacher,"
            f" {sum(ratio <= 0.8 for ratio in ratios['frechet'])} have at most 0.8 x its distance,"
            f" {sum(ratio >= 1 for ratio in ratios['diversity'])} at least its diversity."
        )
    return lines
