"""Apply the guard's measures to healthy and deliberately broken runs of the embedded teacher.

Every run is the demo in float32 with two videos per iteration and one change. Its student is
sampled every ten iterations with the noise and prompts of the guard. A broken run stops when it was
outside the bands twice in a row. With --results, the samples of each run are stored next to the
file, and a second start continues where the first stopped. Measures and bands are applied to the
stored samples, so they can be changed afterwards.

    python -m benchmarks.guard --results guard.json
    python -m benchmarks.guard --results guard.json --show      # only judge the stored samples
    python -m benchmarks.guard --results guard.json --cost      # time the guard of a run
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.guard_plot import draw_distances
from benchmarks.guard_recipes import FULL, RECIPES, STOP, Recipe  # noqa: F401
from benchmarks.stopwatch import machine, table
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig, load_config
from tdmvid.data.files import atomic_path, write_json, write_text
from tdmvid.data.prompts import read_training_prompts
from tdmvid.diffusion.sampler import ddim
from tdmvid.distill.grids import reference_grid
from tdmvid.distill.iteration import Outcome, iterate
from tdmvid.distill.objective import build_objective
from tdmvid.guard.bands import BANDS, Verdict, judge
from tdmvid.guard.limits import Prompts, check_settings
from tdmvid.guard.measures import latent_distance, measure
from tdmvid.parallel import launch
from tdmvid.train.run import Run, build_run
from tdmvid.train.samples import NotFinite, Part, sample_parts, sample_student
from tdmvid.train.trainer import micro_batches

EVERY = 10
"""Iterations between two samplings."""
SHOWN = (
    "run",
    "iterations",
    "settings",
    "left the bands after",
    "outside at the end",
    "farthest",
    "distance",
)
PATIENCE = 3
"""Number of failed iterations in a row after which a run stops, as in training."""


class Climbing:
    """An engine whose role ascends its loss.

    Args:
        engine: The engine that takes the steps.
    """

    def __init__(self, engine: Any):
        self.engine = engine

    def backward(self, loss: Tensor) -> None:
        """Backpropagate the negative loss.

        Args:
            loss: The loss (scalar).
        """
        self.engine.backward(-loss)

    def step(self, *, skip: bool | Tensor = False) -> Any:
        """Take a step of the engine.

        Args:
            skip: Whether to skip the update, a bool or a scalar tensor.

        Returns:
            Result of the engine's step.
        """
        return self.engine.step(skip=skip)


def build(recipe: Recipe, folder: Path) -> Run:
    """Build the run of a recipe.

    Args:
        recipe: The recipe.
        folder: Folder for cached embeddings.

    Returns:
        The run.
    """
    config = _config(recipe, f'prompts.cache="{folder / "cache"}"')
    return build_run(config, launch.start("none"))


def _config(recipe: Recipe, *settings: str) -> RunConfig:
    usual = ("model.dtype=float32", "batch.micro=2", *STOP)
    return load_config("shapes_4nfe", [*usual, *settings, *recipe.settings])


def wrong_settings(recipe: Recipe) -> list[str]:
    """Return what the guard finds in a recipe's settings, before the first iteration.

    Args:
        recipe: The recipe.

    Returns:
        Names of findings.
    """
    config = _config(recipe)
    prompts = Prompts(len(read_training_prompts(config.prompts)), ranks=1)
    return [finding.measure for finding in check_settings(config, prompts)]


def train(recipe: Recipe, folder: Path) -> None:
    """Train a recipe's student and store its samples and logged numbers.

    If the run stops early because something is not finite, the reason is written to `ended.txt`.

    Args:
        recipe: The recipe.
        folder: Folder to write to.
    """
    run = build(recipe, folder.parent)
    parts = sample_parts(run)
    _keep(run, parts, folder, 0)
    failures, record = 0, []
    for step in range(recipe.iterations):
        outcome = _iteration(run, step, against=recipe.against)
        record.append(json.dumps({"step": step, **outcome.scalars}) + "\n")
        write_text(folder / "metrics.jsonl", "".join(record))
        failures = failures + 1 if outcome.failed else 0
        if failures >= PATIENCE:
            write_text(folder / "ended.txt", f"{step + 1} the loss is not finite")
            return
        if (step + 1) % EVERY == 0:
            try:
                _keep(run, parts, folder, step + 1)
            except NotFinite:
                write_text(folder / "ended.txt", f"{step + 1} the samples are not finite")
                return
            if recipe.broken and len(out_of_bands(folder)) > 1:
                return


def _iteration(run: Run, step: int, *, against: bool) -> Outcome:
    """Run one training iteration."""
    engines = dict(run.engines)
    if against:
        engines["student"] = Climbing(engines["student"])
    return iterate(
        step,
        micro_batches(run, step),
        (run.config.batch.micro, *run.backbone.latent_shape()),
        objective=build_objective(run.config.objective),
        roles=run.roles,
        engines=engines,
        grid=run.grid,
        streams=run.streams,
        stream=run.stream,
    )


def _keep(run: Run, parts: list[Part], folder: Path, step: int) -> None:
    """Sample the student and store the samples."""
    latents = [sample_student(run, part.z, part.cond) for part in parts]
    _save(run, torch.cat(latents), folder / f"step_{step:06d}.safetensors")


def _save(run: Run, latents: Tensor, path: Path) -> None:
    pixels = run.backbone.decode(latents).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    with atomic_path(path) as part:
        save_file({"latents": latents.float().contiguous(), "pixels": pixels.contiguous()}, part)


def sample_teacher(folder: Path) -> None:
    """Store many-step samples of the demo's teacher, with the demo's guidance scale.

    Args:
        folder: Folder to write to.
    """
    run = build(Recipe(), folder)
    parts = sample_parts(run)
    grid = reference_grid(run.config, run.backbone.process)
    latents = [ddim(run.roles.teacher, part.z, part.cond, grid) for part in parts]
    _save(run, torch.cat(latents), folder / "teacher.safetensors")
    prompts = [prompt for part in parts for prompt in part.prompts]
    write_json(folder / "batch.json", {"prompts": prompts})


def verdicts(folder: Path) -> dict[int, Verdict]:
    """Judge the stored samples of a run.

    Args:
        folder: Folder of the run.

    Returns:
        Verdicts by number of iterations.
    """
    prompts = json.loads((folder.parent / "batch.json").read_text())["prompts"]
    teacher, reference = _measure(folder.parent / "teacher.safetensors", prompts, None)
    untrained, _ = _measure(folder / "step_000000.safetensors", prompts, reference)
    patience = load_config("shapes_4nfe").guard.patience
    found = {}
    for path in sorted(folder.glob("step_*.safetensors")):
        student, _ = _measure(path, prompts, reference)
        step = int(path.stem.removeprefix("step_"))
        found[step] = judge(student, teacher, untrained=untrained, early=step < patience)
    return found


def _place(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "_")


def _measure(
    path: Path, prompts: list[int], reference: Tensor | None
) -> tuple[dict[str, float], Tensor]:
    """Return the measures of stored samples, and their latents."""
    kept = load_file(path)
    latents = kept["latents"]
    distance = latent_distance(latents, latents if reference is None else reference)
    return measure(kept["pixels"].float() / 127.5 - 1, prompts) | {"latents": distance}, latents


def out_of_bands(folder: Path) -> list[int]:
    """Return when the student's samples were outside a band, without interruption up to the last
    sampling.

    Args:
        folder: Folder of the run.

    Returns:
        Numbers of iterations.
    """
    found: list[int] = []
    for step, verdict in verdicts(folder).items():
        found = [*found, step] if verdict.findings else []
    return found


def cost(folder: Path) -> dict[str, float]:
    """Measure the processor time of the demo's guard and training.

    Args:
        folder: Folder for cached embeddings.

    Returns:
        Seconds by part, and the guard's share of the training.
    """
    config = load_config(
        "shapes_4nfe", ["model.dtype=float32", f'prompts.cache="{folder / "cache"}"']
    )
    run = build_run(config, launch.start("none"))
    clocks = {"an iteration": time.process_time()}
    for step in range(3):
        _iteration(run, step, against=False)
    clocks["an iteration"] = (time.process_time() - clocks["an iteration"]) / 3
    gallery, pairs = sample_parts(run)
    made = {}
    for name, part in (("the gallery", gallery), ("the guard's samples", pairs)):
        began = time.process_time()
        latents = sample_student(run, part.z, part.cond)
        made[name] = (latents, run.backbone.decode(latents))
        clocks[name] = time.process_time() - began
    latents, videos = (torch.cat(both) for both in zip(*made.values(), strict=True))
    began = time.process_time()
    measure(videos, [prompt for part in (gallery, pairs) for prompt in part.prompts])
    latent_distance(latents, latents)
    clocks["the measures"] = time.process_time() - began
    trained = clocks["an iteration"] * config.log.sample_every
    guarded = clocks["the guard's samples"] + clocks["the measures"]
    return clocks | {"share of the training": guarded / trained}


def summary(name: str, folder: Path) -> dict[str, Any]:
    """Return the table row of a run: when it left the bands for good, and in which measures.

    Args:
        name: Name of the recipe.
        folder: Folder of the run.

    Returns:
        Values by column.
    """
    found = verdicts(folder)
    last, out = max(found), out_of_bands(folder)
    ended = folder / "ended.txt"
    at_end = found[last]
    outside = [finding.measure for finding in at_end.findings]
    farthest = max(
        (BANDS[measure].excess(value), measure, step)
        for step, verdict in found.items()
        for measure, value in verdict.relative.items()
    )
    return {
        "run": name,
        "broken": RECIPES[name].broken,
        "changes": list(RECIPES[name].settings),
        "iterations": last,
        "settings": ", ".join(wrong_settings(RECIPES[name])),
        "left the bands after": out[0] if out else "",
        "outside at the end": ", ".join(outside) or (ended.read_text() if ended.exists() else ""),
        "farthest": f"{farthest[1]}, {farthest[0]:.2f} of its band, after {farthest[2]}",
        "distance": f"{found[0].distance:.2f} to {at_end.distance:.2f}",
        "distances": {step: round(verdict.distance, 3) for step, verdict in found.items()},
        "last": {key: round(value, 3) for key, value in at_end.relative.items()},
    }


def draw(folder: Path, path: Path) -> None:
    """Draw the distance of every run over its iterations on a log scale.

    Args:
        folder: Folder of all runs.
        path: SVG file to write.
    """
    runs = {name: verdicts(_place(folder, name)) for name in RECIPES if _is_done(folder, name)}
    found = {
        name: {step: verdict.distance for step, verdict in run.items()}
        for name, run in runs.items()
    }
    draw_distances(path, found, {name for name in found if not RECIPES[name].broken})


def _is_done(folder: Path, name: str) -> bool:
    return (_place(folder, name) / "done.txt").exists()


def main() -> None:
    """Train the runs that are missing and print one row per run."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON file; samples go next to it"
    )
    parser.add_argument(
        "--show", action="store_true", help="judge the stored samples without training"
    )
    parser.add_argument(
        "--only", action="append", choices=RECIPES, help="train only this run; can be repeated"
    )
    parser.add_argument("--cost", action="store_true", help="only time the demo's guard")
    args, rows = parser.parse_args(), []
    torch.set_num_threads(1)
    folder = args.results.with_suffix("")
    if args.cost:
        print(json.dumps(cost(folder), indent=2))
        return
    if args.show and not any(_is_done(folder, name) for name in RECIPES):
        raise ValueError(f"--show: {folder} has no finished run; leave --show out to train them")
    if not (folder / "teacher.safetensors").exists():
        sample_teacher(folder)
    for name, recipe in RECIPES.items():
        own = _place(folder, name)
        wanted = not args.show and name in (args.only or RECIPES)
        if wanted and not _is_done(folder, name):
            began = time.process_time()
            train(recipe, own)
            write_text(own / "done.txt", f"{time.process_time() - began:.0f}")
            print(f"{name}: {time.process_time() - began:.0f} s", flush=True)
        if _is_done(folder, name):
            rows.append(summary(name, own))
            write_json(args.results, {"machine": machine(torch.device("cpu")), "runs": rows})
    draw(folder, args.results.with_suffix(".svg"))
    print(table([*SHOWN], [[row[key] for key in SHOWN] for row in rows]))


if __name__ == "__main__":
    run_program(main)
