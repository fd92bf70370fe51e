"""A toy that separates correct from incorrect methods: TDM on a 2-D mixture of eight Gaussians with
an exact teacher.

    python -m benchmarks.toy                       # both processes, a few minutes on one core
    python -m benchmarks.toy --process vp --set rollout=stop --iterations 500

Every row is the sliced 2-Wasserstein distance of 20,000 samples to the data, averaged over several
independent sets of data. (The distance of data to itself, the floor, varies between sets.)
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.toy_score import NULL, floor, score
from tdmvid.backbones.gaussian import (
    Critic,
    ExactDenoiser,
    Mixture,
    VelocityNetwork,
    fit_to_teacher,
)
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import OptimConfig, TDMSettings, from_dict, to_dict
from tdmvid.diffusion.denoiser import Denoiser
from tdmvid.diffusion.grid import TimeGrid, shifted
from tdmvid.diffusion.process import Process, RectifiedFlow, TabulatedVP
from tdmvid.distill.iteration import Outcome, Reweigh, iterate
from tdmvid.distill.objective import Roles, build_objective
from tdmvid.distill.stream import Stream
from tdmvid.distill.tdm import TDM
from tdmvid.distill.trajectories import pick_grid
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.rng import Streams
from tdmvid.train.rewards import Rewards


def stable_diffusion() -> TabulatedVP:
    """Return Stable Diffusion's process: the `scaled_linear` schedule from 0.00085 to 0.012.

    Returns:
        The process.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return TabulatedVP((1 - betas).cumprod(0))


PROCESSES: dict[str, Callable[[], Process]] = {"vp": stable_diffusion, "flow": RectifiedFlow}
SHIFTS = {"vp": 0.5, "flow": 0.75}
"""Flow shift of the student's grid. On the uniform grid the last step starts at noise of 0.57
(flow: 0.25), where a mode is 0.12 wide, so it must separate overlapping modes with a steep map. A
shift below 1 makes the last step easier.
"""


MIXTURES: dict[str, Callable[[], Mixture]] = {"circle": Mixture.circle, "grid": Mixture.grid}

OBJECTIVE = TDM(
    rollout="full", fake_target="exact", distance="l2", fresh_noise=0.1, snr_ceiling=50.0
)
"""Objective of the table. These are not TDM's defaults; see docs/objectives.md for the
measurements.

- A fake that regresses on x0_hat recognises it in the noise of x_s, so no state of the trajectory
has the right distribution.
- huber is nearly the sign of teacher - fake. Its zero is a median, while the KL gradient's is a
mean.
- Nearly clean draws carry no information on the mass of a mode. The flow's last segment is full of
them (sigma 0.02 at its lower end, 0.13 with the table).
- A ceiling of 5 on the fake's weight leaves it inexact where modes are narrow, which is where the
last step needs it.
"""


@dataclass(frozen=True)
class Recipe:
    """Settings of a distillation of the toy."""

    objective: TDM = OBJECTIVE
    steps: int = 4
    iterations: int = 2000
    batch: int = 1024
    width: int = 128
    shift: float = 1.0
    """Flow shift of the grid; 1 is uniform."""
    lr_student: float = 2e-4
    lr_fake: float = 2e-3
    ema: float = 0.999
    seed: int = 0
    mixture: str = "circle"

    def data(self) -> Mixture:
        """Return the distribution of the teacher.

        Returns:
            The mixture.
        """
        return MIXTURES[self.mixture]()

    def rewards(self, streams: Streams, stream: Stream | None) -> Rewards | None:
        """Return the rewards of a run.

        Args:
            streams: Random generators of the run.
            stream: Its stream of trajectories, if it has one.

        Returns:
            The rewards; None for a run without them.
        """
        return None

    @property
    def rewarded(self) -> bool:
        """Whether a run has rewards."""
        return False


def pretrained(process: Process, recipe: Recipe) -> VelocityNetwork:
    """Train a network to match the exact teacher. Student and fake start from it.

    Args:
        process: Diffusion process.
        recipe: Settings.

    Returns:
        The network.
    """
    network = VelocityNetwork(
        process,
        width=recipe.width,
        seed=recipe.seed,
        conditioned_on_steps=recipe.objective.conditioned_on_steps,
    )
    fit_to_teacher(network, ExactDenoiser(recipe.data(), process))
    return network


def distil(
    process: Process,
    recipe: Recipe,
    *,
    start: VelocityNetwork | None = None,
    student: VelocityNetwork | None = None,
    on_step: Callable[[int, Callable[[], VelocityNetwork], int, dict], None] | None = None,
    iteration: Callable[..., Outcome] = iterate,
) -> VelocityNetwork:
    """Distil the toy.

    Args:
        process: Diffusion process.
        recipe: Settings.
        start: Pretrained network; default: `pretrained(...)`.
        student: Another start for the student only.
        on_step: Called with the number of completed iterations, a function that returns the EMA
            student, the number of calls of all networks in batches, and the scalars.
        iteration: Iteration function with another call pattern.

    Returns:
        The student after `recipe.iterations`, with its EMA weights.

    Raises:
        RuntimeError: A loss or gradient is not finite.
    """
    objective, streams = recipe.objective, Streams(recipe.seed)
    networks = _networks(recipe, start or pretrained(process, recipe), student)
    engines = _engines(recipe, networks)
    counted = {
        role: Counted(network)
        for role, network in (networks | {"teacher": ExactDenoiser(recipe.data(), process)}).items()
    }
    data = recipe.data().sample(20_000, torch.Generator().manual_seed(recipe.seed))
    roles = Roles(**counted, real=lambda pick: data[(pick * len(data)).long()])
    grids = [shifted(k, recipe.shift, process) for k in objective.step_set or (recipe.steps,)]
    stream, shape = None, (recipe.batch, 2)
    if objective.rollout == "stream":
        stream = Stream(objective, grids, streams, shape, rewards=int(recipe.rewarded))
    rewards = recipe.rewards(streams, stream)

    def averaged() -> VelocityNetwork:
        made = copy.deepcopy(networks["student"])
        made.load_state_dict({**made.state_dict(), **engines["student"].weights(averaged=True)})
        return made

    for step in range(recipe.iterations):
        grid, going = pick_grid(grids, streams.generator(step, "K")), {}
        if rewards is not None:
            going["reweigh"] = _reweigh(rewards, roles.student, step, grid, recipe.batch)
        if stream is not None:
            going["stream"] = stream
        outcome = iteration(
            step,
            [NULL],
            shape,
            objective=objective,
            roles=roles,
            engines=engines,
            grid=grid,
            streams=streams,
            **going,
        )
        if outcome.failed:
            raise RuntimeError(
                f"iteration {step}: the {outcome.failed}'s loss or gradient is not finite"
            )
        if on_step is not None:
            calls = sum(network.calls for network in counted.values())
            scalars = outcome.scalars | ({} if rewards is None else rewards.scalars)
            on_step(step + 1, averaged, calls, scalars)
    return averaged()


def _reweigh(rewards: Rewards, student: Denoiser, step: int, grid: TimeGrid, batch: int) -> Reweigh:
    """Score what has ended, and return the function that weights the trajectories."""
    if rewards.stream is not None:
        rewards.stream.begin(student, [NULL])
        rewards.score_ended()
    return rewards.reweigh(step, grid, [[0] * batch])


def _networks(
    recipe: Recipe, start: VelocityNetwork, student: VelocityNetwork | None
) -> dict[str, torch.nn.Module]:
    """Return the trained networks by role."""
    networks = {"student": copy.deepcopy(student or start), "fake": copy.deepcopy(start)}
    if "discriminator" in recipe.objective.roles:
        networks["discriminator"] = Critic(width=recipe.width, seed=recipe.seed)
    return networks


def _engines(recipe: Recipe, networks: dict[str, torch.nn.Module]) -> dict[str, TorchEngine]:
    """Return an engine for every trained network. Only the student has EMA weights."""
    rates = {"student": recipe.lr_student, "fake": recipe.lr_fake, "discriminator": recipe.lr_fake}
    return {
        role: TorchEngine(
            network,
            OptimConfig(lr=rates[role], schedule="linear", clip=0),
            total_steps=recipe.iterations * recipe.objective.roles.count(role),
            ema=recipe.ema if role == "student" else 0.0,
        )
        for role, network in networks.items()
    }


class Counted:
    """A role that counts its calls.

    Args:
        network: Network of the role.
    """

    def __init__(self, network):
        self.network, self.process, self.calls = network, getattr(network, "process", None), 0

    def __call__(self, x_t, t, cond):
        self.calls += 1
        return self.network(x_t, t, cond)


def _objective(pairs: list[str]) -> TDM:
    """Return OBJECTIVE changed by `name=value` pairs, which are parsed as in a config."""
    data = to_dict(OBJECTIVE)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if name not in data or name == "kind" or not equals:
            raise SystemExit(
                f"error: --set {pair}: write NAME=VALUE, where NAME is one of"
                f" {', '.join(key for key in data if key != 'kind')}"
            )
        try:
            data[name] = json.loads(value)
        except json.JSONDecodeError:
            data[name] = value
    try:
        return build_objective(from_dict(TDMSettings, data, "objective"))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def main() -> None:
    """Distil the toy and print the table."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--process", choices=[*PROCESSES, "both"], default="both", help="diffusion process"
    )
    parser.add_argument("--steps", type=int, default=4, help="K")
    parser.add_argument(
        "--iterations", type=int, default=Recipe.iterations, help="number of training iterations"
    )
    parser.add_argument("--width", type=int, default=Recipe.width, help="width of the networks")
    parser.add_argument("--seeds", type=int, default=2, help="number of students")
    parser.add_argument(
        "--shift", type=float, help="flow shift of the grid (default: 0.5 for vp, 0.75 for flow)"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="options of TDM")
    args = parser.parse_args()
    if args.seeds < 1:
        raise SystemExit(f"--seeds {args.seeds}: use at least 1")
    torch.set_num_threads(1)
    objective = _objective(args.set)
    print(f"| sampler | sliced W2 |\n|---|---|\n| data against itself | {floor():.3f} |")
    for name in PROCESSES if args.process == "both" else [args.process]:
        process = PROCESSES[name]()
        teacher = ExactDenoiser(Mixture.circle(), process)
        shift = SHIFTS[name] if args.shift is None else args.shift
        row = " / ".join(f"{score(teacher, k, shift=shift):.3f}" for k in (50, 8, 4, 2, 1))
        print(f"| {name}, shift {shift:g}: teacher, 50 / 8 / 4 / 2 / 1 steps | {row} |", flush=True)
        start, found = time.perf_counter(), []
        for seed in range(args.seeds):
            recipe = Recipe(
                objective, args.steps, args.iterations, width=args.width, shift=shift, seed=seed
            )
            found.append(f"{score(distil(process, recipe), args.steps, shift=shift):.3f}")
        seconds = (time.perf_counter() - start) / args.seeds
        print(
            f"| {name}: TDM, {args.steps} steps, {args.iterations} iterations ({seconds:.0f} s) |"
            f" {', '.join(found)} |",
            flush=True,
        )


if __name__ == "__main__":
    run_program(main)
