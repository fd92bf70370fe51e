"""Three small networks on the mixture of Gaussians whose updates equal their gradients, and
trajectories that continue without any.
"""

import torch

from tdmvid.backbones.gaussian import ExactDenoiser, Mixture, VelocityNetwork
from tdmvid.config import OptimConfig
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles
from tdmvid.distill.stream import Stream
from tdmvid.distill.tdm import TDM
from tdmvid.parallel.engine import StepResult, TorchEngine
from tdmvid.parallel.rng import Streams

PROCESS, BATCH = RectifiedFlow(), 8
GRID = uniform(4, PROCESS)


class Counted:
    """A denoiser that counts the samples it is called with, and those with a gradient for its
    weights.
    """

    def __init__(self, denoiser):
        self.denoiser, self.process, self.samples, self.graded = denoiser, denoiser.process, 0, 0

    def __call__(self, x_t, t, cond):
        self.samples += len(x_t)
        out = self.denoiser(x_t, t, cond)
        if out.requires_grad:
            self.graded += len(x_t)
        return out


class World:
    """Roles and SGD engines with lr 1 and no clipping, so a weight's change is its gradient."""

    def __init__(self, objective, *, accumulation=1, cfg=3.0, seed=0, stream=None, lr=1e-3):
        exact = ExactDenoiser(Mixture.circle(), PROCESS)
        self.networks = {
            role: VelocityNetwork(exact.process, width=16, seed=i)
            for i, role in enumerate(("student", "fake"))
        }
        for i, network in enumerate(self.networks.values()):
            torch.nn.init.normal_(
                network.layers[-1].weight, std=0.1, generator=torch.Generator().manual_seed(i)
            )
        config = OptimConfig(lr=lr, clip=0, algorithm="sgd")
        self.engines = {
            role: TorchEngine(network, config, total_steps=1, accumulation=accumulation)
            for role, network in self.networks.items()
        }
        self.counted = {role: Counted(network) for role, network in self.networks.items()} | {
            "teacher": Counted(exact)
        }
        self.roles = Roles(
            self.counted["student"],
            self.counted["fake"],
            Guided(self.counted["teacher"], Cond({}), cfg),
        )
        self.objective, self.seed, self.stream = objective, seed, stream
        if objective.rollout == "stream" and stream is None:
            self.stream = Stream(objective, [GRID], Streams(seed), (BATCH, 2), micros=accumulation)

    def iterate(self, step=0, micros=1, first_stream=0, reweigh=None):
        return iterate(
            step,
            [Cond({})] * micros,
            (BATCH, 2),
            objective=self.objective,
            roles=self.roles,
            engines=self.engines,
            grid=GRID,
            streams=Streams(self.seed),
            first_stream=first_stream,
            stream=self.stream,
            reweigh=reweigh,
        )

    def weights(self, role):
        return torch.cat([p.flatten() for p in self.engines[role].weights(averaged=False).values()])

    def forwards(self):
        return sum(role.samples for role in self.counted.values()) / BATCH

    def backwards(self):
        return sum(role.graded for role in self.counted.values()) / BATCH


class Still:
    """An engine that changes nothing."""

    def backward(self, loss):
        pass

    def step(self, *, skip=False):
        return StepResult(not bool(skip), 0.0, 0.0)


STREAM = TDM(rollout="stream")


def stream(objective=STREAM, grids=(GRID,), *, batch=BATCH, **layout):
    return Stream(objective, grids, Streams(0), (batch, 2), **layout)


def shrink(x_t, t, cond):
    """A student that is not a linear function of time alone."""
    return x_t * (0.3 + 0.5 * t[:, None]) + 0.1


shrink.process = PROCESS


def walk(slots, iterations, *, student=shrink, on=True):
    """Run iterations without turns, and return the schedules before each."""
    seen = []
    conds = [Cond({})] * len(slots.schedules)
    slots.begin(student, conds)
    for step in range(iterations):
        seen.append(list(slots.schedules))
        predictions = []
        for micro, cond in enumerate(conds):
            paths = [slots.path(micro, cond, number) for number in slots.numbers]
            predictions.append([student(path.x, path.upper, path.cond) for path in paths])
        finite = slots.move(step, predictions, PROCESS, on=on)
        slots.settle(finite.tolist(), on=on)
    return seen
