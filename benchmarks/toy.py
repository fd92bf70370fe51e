"""The toy that separates right from wrong: TDM on a 2-D mixture of eight Gaussians, exact teacher.

    python benchmarks/toy.py                       # the table of both processes, a few minutes on one core
    python benchmarks/toy.py --process vp --set rollout=stop --iterations 500

Every row is the sliced 2-Wasserstein distance of 20,000 samples to the data, the mean over
several independent sets of data (the distance of data to itself, the floor, varies from set to set).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from tdmvid.backbones.gaussian import ExactDenoiser, Mixture, VelocityNetwork, fit_to_teacher, sliced_wasserstein
from tdmvid.diffusion.denoiser import Cond, Denoiser
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.process import Process, RectifiedFlow, TabulatedVP
from tdmvid.diffusion.sampler import ddim
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.optim import OptimConfig
from tdmvid.parallel.rng import Streams

NULL = Cond({})


def stable_diffusion() -> TabulatedVP:
    """Stable Diffusion's `scaled_linear` table, 0.00085 to 0.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return TabulatedVP((1 - betas).cumprod(0))


PROCESSES: dict[str, Callable[[], Process]] = {"vp": stable_diffusion, "flow": RectifiedFlow}


@dataclass(frozen=True)
class Recipe:
    """How the toy is distilled."""

    objective: TDM = TDM(rollout="full")
    steps: int = 4
    iterations: int = 2000
    batch: int = 512
    width: int = 256
    shift: float = 1.0
    """Flow shift of the grid; 1 is uniform."""
    lr_student: float = 2e-4
    lr_fake: float = 1e-3
    ema: float = 0.99
    seed: int = 0


def distil(process: Process, recipe: Recipe) -> VelocityNetwork:
    """The student after `recipe.iterations`, with its averaged weights."""
    teacher = ExactDenoiser(Mixture.circle(), process)
    student, fake = (VelocityNetwork(process, width=recipe.width, seed=recipe.seed) for _ in range(2))
    fit_to_teacher(student, teacher)
    fake.load_state_dict(student.state_dict())
    total = recipe.iterations
    engines = {
        "student": TorchEngine(
            student, OptimConfig(lr=recipe.lr_student, schedule="linear", clip=0), total_steps=total, ema=recipe.ema
        ),
        "fake": TorchEngine(
            fake, OptimConfig(lr=recipe.lr_fake, schedule="linear", clip=0),
            total_steps=total * recipe.objective.fake_updates,
        ),
    }
    roles, streams, grid = Roles(student, fake, teacher), Streams(recipe.seed), shifted(recipe.steps, recipe.shift, process)
    for step in range(total):
        outcome = iterate(
            step, [NULL], (recipe.batch, 2),
            objective=recipe.objective, roles=roles, engines=engines, grid=grid, streams=streams,
        )
        if outcome.failed:
            raise RuntimeError(f"iteration {step}: the {outcome.failed}'s loss or gradient is not finite")
    student.load_state_dict({**student.state_dict(), **engines["student"].weights(averaged=True)})
    return student


def distance_to_data(sample: Callable[[torch.Generator], torch.Tensor], *, sets: int = 4, count: int = 20_000) -> float:
    """Mean sliced W2 of `sample(generator)` ([count, 2]) to `sets` independent sets of data."""
    mixture = Mixture.circle()
    found = []
    for seed in range(sets):
        generator = torch.Generator().manual_seed(1000 + seed)
        data = mixture.sample(count, generator)
        found.append(sliced_wasserstein(sample(generator), data, seed=seed))
    return sum(found) / sets


def score(denoiser: Denoiser, steps: int, *, shift: float = 1.0, sets: int = 4, count: int = 20_000) -> float:
    """Sliced W2 of `steps` DDIM steps to the data."""
    grid = shifted(steps, shift, denoiser.process)
    return distance_to_data(
        lambda generator: ddim(denoiser, torch.randn(count, 2, generator=generator), NULL, grid), sets=sets, count=count
    )


def floor(*, sets: int = 4, count: int = 20_000) -> float:
    """Sliced W2 of the data to other draws of itself."""
    return distance_to_data(lambda generator: Mixture.circle().sample(count, generator), sets=sets, count=count)


def _options(pairs: list[str]) -> dict:
    """`name=value` pairs as TDM options, by the type of their default."""
    default = {field.name: getattr(TDM(), field.name) for field in fields(TDM)}
    parsed = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in default:
            raise SystemExit(f"--set {pair}: choose from {', '.join(default)}")
        kind = type(default[name])
        parsed[name] = value == "true" if kind is bool else float(value) if default[name] is None else kind(value)
    return parsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--process", choices=[*PROCESSES, "both"], default="both")
    parser.add_argument("--steps", type=int, default=4, help="K")
    parser.add_argument("--iterations", type=int, default=Recipe.iterations)
    parser.add_argument("--width", type=int, default=Recipe.width)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of TDM")
    args = parser.parse_args()
    torch.set_num_threads(1)
    objective = TDM(**{"rollout": "full"} | _options(args.set))
    print(f"| sampler | sliced W2 |\n|---|---|\n| data against itself | {floor():.3f} |")
    for name in PROCESSES if args.process == "both" else [args.process]:
        process = PROCESSES[name]()
        teacher = ExactDenoiser(Mixture.circle(), process)
        row = " / ".join(f"{score(teacher, k):.3f}" for k in (50, 8, 4, 2, 1))
        print(f"| {name}: teacher, 50 / 8 / 4 / 2 / 1 steps | {row} |", flush=True)
        start, found = time.perf_counter(), []
        for seed in range(args.seeds):
            recipe = Recipe(objective, args.steps, args.iterations, width=args.width, seed=seed)
            found.append(f"{score(distil(process, recipe), args.steps):.3f}")
        seconds = (time.perf_counter() - start) / args.seeds
        print(f"| {name}: TDM, {args.steps} steps, {args.iterations} iterations ({seconds:.0f} s) | {', '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
