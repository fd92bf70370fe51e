"""The same seconds for the published call pattern and for this project's: whose student is closer
to the teacher?

How many iterations fit into the time is measured first, the two patterns in turn; each student is
then trained for its own number of them, its learning rate falling to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks import toy as mixture
from benchmarks.published import published
from benchmarks.stopwatch import alternate
from tdmvid.config import RunConfig, load_config
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import build_objective
from tdmvid.parallel import launch
from tdmvid.shapes import score, world
from tdmvid.shapes.judge import features, load_judge
from tdmvid.shapes.metrics import frechet_distance
from tdmvid.train.run import Run, build_run
from tdmvid.train.samples import sample_student
from tdmvid.train.trainer import _micro_batches

Table = tuple[str, list[str], list[list[object]]]
PATTERNS = {
    "published pattern": (published, {"rollout": "full"}),
    "tdmvid, full rollout": (iterate, {"rollout": "full"}),
    "tdmvid": (iterate, {"rollout": "stop"}),
    "tdmvid, shared draw": (iterate, {"rollout": "stop", "draws": "shared"}),
}
"""The iteration, and the objective's options."""


def fitting(
    loops: dict[str, Callable[[int], object]], seconds: float, device: torch.device, *, each: int
) -> dict[str, int]:
    """How many iterations of every pattern fit into that time; a loop makes `each` of them."""
    return {
        name: max(1, round(each * seconds / clock.seconds))
        for name, clock in alternate(loops, repeats=5, device=device).items()
    }


def toy(seconds: float, seeds: int) -> Table:
    """The mixture of Gaussians, whose teacher is exact: distance to its law."""
    process, shift, each = mixture.stable_diffusion(), mixture.SHIFTS["vp"], 40

    def recipe(options, iterations, seed=0):
        return mixture.Recipe(
            replace(mixture.OBJECTIVE, **options), iterations=iterations, shift=shift, seed=seed
        )

    start = mixture.pretrained(process, recipe({}, 0))
    loops = {
        name: lambda turn, iteration=iteration, options=options: mixture.distil(
            process, recipe(options, each), start=start, iteration=iteration
        )
        for name, (iteration, options) in PATTERNS.items()
    }
    rows = []
    for name, count in fitting(loops, seconds, torch.device("cpu"), each=each).items():
        iteration, options = PATTERNS[name]
        students = [
            mixture.distil(process, recipe(options, count, seed), start=start, iteration=iteration)
            for seed in range(seeds)
        ]
        rows.append(
            [
                name,
                count,
                ", ".join(f"{mixture.score(student, 4, shift=shift):.3f}" for student in students),
            ]
        )
    return (
        f"mixture of Gaussians, {seconds:g} s for each student",
        ["iteration", "iterations", "sliced W2 to the teacher's law"],
        rows,
    )


def shapes(seconds: float, seeds: int, *, captions: int = 32, each_caption: int = 4) -> Table:
    """The embedded teacher: Fréchet distance of the judge's features to the teacher's own long
    samples, from the same noise.
    """
    config = load_config("shapes_4nfe")
    run = build_run(config, launch.start("none"))
    loops = {
        name: lambda turn, name=name: _iterations(
            _with_options(run, name), name, range(turn, turn + 4)
        )
        for name in PATTERNS
    }
    counts = fitting(loops, seconds, run.world.device, each=4)
    distance, rows = Distance(run, captions, each_caption), []
    for name, count in counts.items():
        found = []
        for seed in range(seeds):
            trained = _trained(replace(config, steps=count, seed=seed), name)
            found.append(distance(trained))
        rows.append([name, count, ", ".join(f"{value:.3f}" for value in found)])
    title = f"shapes, {seconds:g} s for each student; {len(distance.z)} videos of held-out captions"
    return title, ["iteration", "iterations", "Fréchet distance to the teacher's samples"], rows


class Distance:
    """Fréchet distance of a student's videos to the long samples of a run's teacher: held-out
    captions, the same noise, the judge's features.
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


def _with_options(run: Run, name: str) -> Run:
    objective = replace(run.config.objective, **PATTERNS[name][1])
    return replace(run, config=replace(run.config, objective=objective))


def _trained(config: RunConfig, name: str) -> Run:
    run = _with_options(build_run(config, launch.start("none")), name)
    _iterations(run, name, range(config.steps))
    return run


def _iterations(run: Run, name: str, steps: range) -> None:
    for step in steps:
        outcome = PATTERNS[name][0](
            step,
            _micro_batches(run, step),
            (run.config.batch.micro, *run.backbone.latent_shape()),
            objective=build_objective(run.config.objective),
            roles=run.roles,
            engines=run.engines,
            grid=run.grid,
            streams=run.streams,
        )
        assert outcome.failed is None, outcome
