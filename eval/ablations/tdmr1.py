"""TDM-R1 (arXiv 2603.07700) on the mixture, for comparison with rewards through the fake.

A surrogate is trained with a group preference loss to tell rewarded samples from others, and the
student moves along teacher - fake plus a multiple of surrogate - reference. The settings and rules
are those of the authors' released code. Trajectories are sampled once an epoch, which has two
iterations at two of the K steps. An iteration updates fake, surrogate and student.

Shapes: B is the batch, in groups of G samples with one prompt; samples are [B, 2], times, rewards,
advantages and errors [B].
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from tdmvid.backbones.gaussian import VelocityNetwork
from tdmvid.config import OptimConfig
from tdmvid.diffusion.sampler import Trajectory, ddim_step, times_like
from tdmvid.distill.iteration import Outcome
from tdmvid.distill.losses import distance, per_sample_mean, velocity_weight
from tdmvid.distill.objective import Draw, Roles
from tdmvid.parallel.engine import TorchEngine

from .rewarded import Rewarded, favoured
from .toy import toy

PASSES = 2
"""Iterations of an epoch, each at another step of the trajectories."""
LARGEST = 5.0
"""Limit of the advantage."""


@dataclass(frozen=True)
class TDMR1(Rewarded):
    """Settings of TDM-R1. The defaults are those of the authors for GenEval."""

    weight: float = 0.7
    """Weight of surrogate - reference in the student's loss; the weight of teacher - fake is 1."""
    guidance: float = 0.0
    """Weight of teacher(cond) - teacher(null) in the student's loss."""
    group: int = 32
    """Samples of a group G, which have a prompt and the noise of the surrogate in common."""
    beta: float = 1.0
    """Scale of the preference of a group."""
    clip: float = 0.002
    """Change of a sample's likelihood per epoch beyond which it no longer contributes."""
    far: float = 0.05
    """Squared distance of surrogate and reference beyond which only samples on the wrong side of
    the reference contribute.
    """
    early: float = 0.25
    """Smallest time of the surrogate's draws."""
    early_student: float = 0.55
    """Smallest time at which the student meets the surrogate."""
    to_reference: float = 0.001
    """Weight of the surrogate's squared distance to the reference."""
    fake_to_reference: float = 0.02
    """Weight of the fake's squared distance to the reference."""
    lr_surrogate: float = 2e-3
    """Learning rate of the surrogate."""
    normaliser: str = "direction"
    """Divisor of a direction of the student's loss: its own mean absolute value (`direction`), or
    the distance between x0_hat and the teacher's prediction (`teacher`), as in TDM.
    """

    @property
    def aimed(self) -> float | None:
        """None: there is no strength that the result could be compared with."""
        return None

    @property
    def rewarded(self) -> bool:
        """False: the fake's loss is not weighted."""
        return False

    def turns(self, start: VelocityNetwork):
        """Return the iteration function.

        Args:
            start: Pretrained network, from which the surrogate starts; also the reference.

        Returns:
            The function.
        """
        return Turns(start, self)


@dataclass(frozen=True)
class Epoch:
    """Finished trajectories of an epoch."""

    states: list[Tensor]
    """States at s_0 (the finished samples) to s_K, each [B, 2]."""
    advantage: Tensor
    """Advantages, [B]."""
    order: list[int]
    """Steps in the order of the iterations."""


class Turns:
    """Iterations of TDM-R1.

    Args:
        start: Pretrained network.
        recipe: Settings.
    """

    def __init__(self, start: VelocityNetwork, recipe: TDMR1):
        self.recipe, self.reference, self.process = recipe, start, start.process
        self.surrogate, self.old = copy.deepcopy(start), copy.deepcopy(start)
        settings = OptimConfig(
            lr=recipe.lr_surrogate, betas=(0.9, 0.999), schedule="linear", clip=1.0
        )
        self.engine = TorchEngine(self.surrogate, settings, total_steps=recipe.iterations)
        self.epoch: Epoch | None = None

    def __call__(
        self, step, conds, shape, *, objective, roles, engines, grid, streams, **rest
    ) -> Outcome:
        """Update fake, surrogate and student on trajectories of the epoch.

        Args:
            step: Iteration.
            conds: Conditioning of the only micro-batch.
            shape: Its shape.
            objective: TDM, which gives the draws and the fake's loss.
            roles: The networks.
            engines: Engines of student and fake.
            grid: Times of the sampling steps.
            streams: Random generators.
            **rest: Not used.

        Returns:
            Result of the iteration.
        """
        if step % PASSES == 0:
            self._lag(step // PASSES)
            self.epoch = self._sampled(step, shape, roles.student, conds[0], grid, streams)
        k = self.epoch.order[step % PASSES]
        path = _at(self.epoch, k, grid, conds[0])
        x0_hat = roles.student(path.x, path.upper, path.cond)
        draw = objective.draw(path, x0_hat.detach(), streams.generator(step, "fake"), self.process)
        losses = {"fake": self._fake(objective, roles, draw)}
        _take(engines["fake"], losses["fake"])
        losses["surrogate"], found = self._preference(grid, streams.generator(step, "surrogate"))
        _take(self.engine, losses["surrogate"])
        drawn = streams.generator(step, "student")
        draw = objective.draw(path, x0_hat, drawn, self.process)
        losses["student"] = self.student_loss(roles, draw, path, drawn)
        result = _take(engines["student"], losses["student"])
        failed = [role for role, loss in losses.items() if not loss.isfinite()]
        scalars = {f"loss/{role}": float(loss) for role, loss in losses.items()} | found
        return Outcome(scalars | {"grad_norm/student": result.grad_norm}, *failed[:1])

    def student_loss(self, roles: Roles, draw: Draw, path: Trajectory, drawn) -> Tensor:
        """Compute the student's loss: teacher - fake, guidance and reward.

        Args:
            roles: The networks; the teacher without guidance.
            draw: Draw of TDM on the trajectory, with the graph of x0_hat.
            path: The trajectory at s_k.
            drawn: Generator of the surrogate's times and noise.

        Returns:
            The loss, a scalar.
        """
        recipe, clean = self.recipe, draw.x0_hat.detach()
        with torch.no_grad():
            teacher = roles.teacher(draw.x_tau, draw.tau, path.cond)
            terms = [(1.0, teacher - roles.fake(draw.x_tau, draw.tau, path.cond), teacher)]
            if recipe.guidance:
                null = roles.teacher(draw.x_tau, draw.tau, toy.NULL)
                terms.append((recipe.guidance, teacher - null, teacher))
            if recipe.weight:
                state = ddim_step(self.process, path.x, clean, path.upper, path.lower)
                x_tau, tau, _ = self._noised(state, path.lower, recipe.early_student, drawn)
                reference = self.reference(x_tau, tau, path.cond)
                towards = self.surrogate(x_tau, tau, path.cond) - reference
                terms.append((recipe.weight, towards, reference))
        return sum(
            weight
            * distance(
                draw.x0_hat,
                clean + direction,
                self._normaliser(clean, direction, teacher),
                kind=recipe.objective.distance,
                huber_c=None,
            )
            for weight, direction, teacher in terms
        )

    def _normaliser(self, clean: Tensor, direction: Tensor, teacher: Tensor) -> Tensor:
        own = self.recipe.normaliser == "direction"
        return per_sample_mean((direction if own else clean - teacher).abs()).clamp(min=1e-6)

    def _lag(self, epoch: int) -> None:
        """Move the old surrogate to the present one; it lags more in later epochs."""
        decay = min(0.001 * (epoch + 1), 0.3)
        with torch.no_grad():
            for old, new in zip(self.old.parameters(), self.surrogate.parameters(), strict=True):
                old.lerp_(new, 1 - decay)

    @torch.no_grad()
    def _sampled(self, step, shape, student, cond, grid, streams) -> Epoch:
        """Sample trajectories, and compute their advantages."""
        x = torch.randn(shape, generator=streams.generator(step, "z"))
        states = [x]
        for k in range(grid.steps, 0, -1):
            upper, lower = (times_like(x, grid.times[i]) for i in (k, k - 1))
            x = ddim_step(self.process, x, student(x, upper, cond), upper, lower)
            states.insert(0, x)
        rewards = favoured(x, []).float().view(-1, self.recipe.group)
        offset = rewards - rewards.mean(1, keepdim=True)
        advantage = (offset / rewards.std().clamp(min=1e-6)).clamp(-LARGEST, LARGEST)
        order = torch.randperm(grid.steps, generator=streams.generator(step, "order")) + 1
        return Epoch(states, advantage.flatten(), order.tolist())

    def _fake(self, objective, roles: Roles, draw: Draw) -> Tensor:
        """Return the loss of TDM's fake, plus its distance to the reference."""
        loss = objective.loss("fake", roles, draw, toy.NULL)["loss"]
        with torch.no_grad():
            reference = self.reference(draw.x_tau, draw.tau, toy.NULL)
        apart = self._apart(roles.fake(draw.x_tau, draw.tau, toy.NULL), reference, draw.tau)
        return loss + self.recipe.fake_to_reference * apart.mean()

    def _preference(self, grid, drawn: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the surrogate's loss at a random step, and scalars to log."""
        recipe, epoch, steps = self.recipe, self.epoch, grid.steps
        likely = torch.arange(steps, 0, -1.0)  # step 1, the cleanest, most often
        j = int(torch.multinomial(likely, 1, generator=drawn)) + 1
        state = epoch.states[j - 1]
        lower = times_like(state, grid.times[j - 1])
        x_tau, tau, target = self._noised(state, lower, recipe.early, drawn)
        with torch.no_grad():
            reference, old = (net(x_tau, tau, toy.NULL) for net in (self.reference, self.old))
        predicted = self.surrogate(x_tau, tau, toy.NULL)
        d, d_old, d_ref = (self._apart(x, target, tau) for x in (predicted, old, reference))
        apart = self._apart(predicted, reference, tau)
        counted = self._counted(d.detach(), d_old, d_ref, bool(apart.mean() > recipe.far))
        preferred = (epoch.advantage * (d.detach() - d_ref)).view(-1, recipe.group).mean(1)
        weight = torch.sigmoid(recipe.beta * preferred).repeat_interleave(recipe.group)
        share = (steps - j + 1) / steps
        loss = share * (weight * counted * epoch.advantage * d).mean()
        found = {"counted": float(counted.mean()), "apart": float(apart.detach().mean())}
        return loss + recipe.to_reference * apart.mean(), found

    def _counted(self, d: Tensor, d_old: Tensor, d_ref: Tensor, far: bool) -> Tensor:
        """Return 1 for samples that contribute, else 0: those that have not moved enough."""
        good, ratio = self.epoch.advantage > 0, (d_old - d).exp()
        moved = torch.where(good, ratio > 1 + self.recipe.clip, ratio < 1 - self.recipe.clip)
        right = torch.where(good, d < d_ref, d > d_ref)
        return (~(moved | (right & far))).float()

    def _noised(
        self, state: Tensor, lower: Tensor, early: float, drawn: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise states at s to a time above `early`, with the noise and time of each group.

        Returns samples, times, and the exact targets of the score of q(x_tau | x_s).
        """
        groups = len(state) // self.recipe.group
        u, eps = torch.rand(groups, generator=drawn), torch.randn(groups, 2, generator=drawn)
        u, eps = (each.repeat_interleave(self.recipe.group, 0) for each in (u, eps))
        low = torch.clamp(lower + self.recipe.objective.margin_low, min=early)
        tau = self.process.snap(low + u * (1 - low))
        scale, beta = self.process.bridge(lower, tau)
        alpha, sigma = self.process.alpha_sigma(lower)
        target = (state - (scale * sigma.square() / beta)[:, None] * eps) / alpha[:, None]
        return self.process.renoise(state, eps, lower, tau), tau, target

    def _apart(self, one: Tensor, other: Tensor, tau: Tensor) -> Tensor:
        """Return the squared distance of clean predictions as velocities, [B]."""
        weight = velocity_weight(
            self.process.alpha_sigma(tau)[1], self.recipe.objective.snr_ceiling
        )
        return weight * per_sample_mean((one - other).square())


def _at(epoch: Epoch, k: int, grid, cond) -> Trajectory:
    """Return the trajectories of an epoch at s_k."""
    x = epoch.states[k]
    lower, upper = (times_like(x, grid.times[i]) for i in (k - 1, k))
    steps = torch.full((len(x),), k)
    return Trajectory(x, steps, lower, upper, cond, start=grid.times[-1])


def _take(engine, loss: Tensor):
    """Update a role, and return the result of the step."""
    engine.backward(loss)
    return engine.step(skip=~loss.detach().isfinite())
