"""TDM-R1 (arXiv 2603.07700), for comparison with rewards through the fake.

A surrogate is trained with a group preference loss to tell rewarded samples from others, and the
student moves along teacher - fake plus a multiple of surrogate - reference. The settings and rules
are those of the authors' released code. Trajectories are sampled once an epoch, which has two
iterations at two of the K steps. An iteration updates fake, surrogate and student.

`tdmr1_mixture.py` runs it on the mixture, `shapes_tdmr1.py` on the embedded teacher.

Shapes: B is the batch, in groups of G samples with one prompt; samples are [B, ...], times,
rewards, advantages and errors [B].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdmvid.config import TDMSettings
from tdmvid.diffusion.denoiser import Cond, Denoiser
from tdmvid.diffusion.sampler import Trajectory, ddim_step, times_like
from tdmvid.distill.iteration import Engine, Outcome
from tdmvid.distill.losses import distance, per_sample_mean, velocity_weight
from tdmvid.distill.objective import Draw, Roles
from tdmvid.distill.tdm import exact_target

PASSES = 2
"""Iterations of an epoch, each at another step of the trajectories."""
LARGEST = 5.0
"""Limit of the advantage."""

Reward = Callable[[Tensor, int], Tensor]
"""(finished samples [B, ...], iteration in which they are sampled) -> rewards [B]."""


@dataclass(frozen=True)
class Preferences:
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
    normaliser: str = "direction"
    """Divisor of a direction of the student's loss: its own mean absolute value (`direction`), or
    the distance between x0_hat and the teacher's prediction (`teacher`), as in TDM.
    """


@dataclass(frozen=True)
class Surrogate:
    """The networks that TDM-R1 has besides those of TDM."""

    reference: Denoiser
    """The frozen network that the surrogate started from, without guidance."""
    network: Denoiser
    """The surrogate."""
    old: Denoiser
    """The surrogate of an earlier epoch."""
    modules: tuple[nn.Module, nn.Module]
    """Modules of the surrogate and of the old one."""
    engine: Engine
    """Trains the surrogate."""
    null: Cond
    """Conditioning without a prompt, of one sample."""

    @torch.no_grad()
    def lag(self, epoch: int) -> None:
        """Move the old surrogate to the present one; it lags more in later epochs.

        Args:
            epoch: Number of the epoch.
        """
        decay = min(0.001 * (epoch + 1), 0.3)
        new, old = (module.parameters() for module in self.modules)
        for mine, theirs in zip(new, old, strict=True):
            if mine.requires_grad:
                theirs.lerp_(mine, 1 - decay)


@dataclass(frozen=True)
class Epoch:
    """Finished trajectories of an epoch."""

    states: list[Tensor]
    """States at s_0 (the finished samples) to s_K, each [B, ...]."""
    cond: Cond
    """Conditioning."""
    advantage: Tensor
    """Advantages, [B]."""
    order: list[int]
    """Steps in the order of the iterations."""


class Turns:
    """Iterations of TDM-R1.

    Args:
        settings: Settings of TDM-R1.
        objective: Settings of TDM.
        surrogate: The surrogate and its reference.
        reward: The reward.
    """

    def __init__(
        self, settings: Preferences, objective: TDMSettings, surrogate: Surrogate, reward: Reward
    ):
        self.settings, self.objective, self.reward = settings, objective, reward
        self.surrogate, self.process = surrogate, surrogate.reference.process
        self.epoch: Epoch | None = None

    def __call__(
        self, step, conds, shape, *, objective, roles, engines, grid, streams, **rest
    ) -> Outcome:
        """Update fake, surrogate and student on trajectories of the epoch.

        Args:
            step: Iteration.
            conds: Conditioning of the only micro-batch, used in the first iteration of an epoch.
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
            self.surrogate.lag(step // PASSES)
            self.epoch = self._sampled(step, shape, roles.student, conds[0], grid, streams)
        k = self.epoch.order[step % PASSES]
        path = _at(self.epoch, k, grid)
        x0_hat = roles.student(path.x, path.upper, path.cond)
        draw = objective.draw(path, x0_hat.detach(), streams.generator(step, "fake"), self.process)
        losses = {"fake": self._fake(objective, roles, draw, path.cond)}
        _take(engines["fake"], losses["fake"])
        losses["surrogate"], found = self._preference(grid, streams.generator(step, "surrogate"))
        _take(self.surrogate.engine, losses["surrogate"])
        drawn = streams.generator(step, "student")
        draw = objective.draw(path, x0_hat, drawn, self.process)
        losses["student"] = self.student_loss(roles, draw, path, drawn)
        result = _take(engines["student"], losses["student"])
        failed = [role for role, loss in losses.items() if not loss.isfinite()]
        scalars = {f"loss/{role}": float(loss.detach()) for role, loss in losses.items()} | found
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
        settings, clean = self.settings, draw.x0_hat.detach()
        with torch.no_grad():
            teacher = roles.teacher(draw.x_tau, draw.tau, path.cond)
            terms = [(1.0, teacher - roles.fake(draw.x_tau, draw.tau, path.cond), teacher)]
            if settings.guidance:
                blank = self.surrogate.null.expand(len(clean))
                null = roles.teacher(draw.x_tau, draw.tau, blank)
                terms.append((settings.guidance, teacher - null, teacher))
            if settings.weight:
                state = ddim_step(self.process, path.x, clean, path.upper, path.lower)
                x_tau, tau, _ = self._noised(state, path.lower, settings.early_student, drawn)
                reference = self.surrogate.reference(x_tau, tau, path.cond)
                towards = self.surrogate.network(x_tau, tau, path.cond) - reference
                terms.append((settings.weight, towards, reference))
        return sum(
            weight
            * distance(
                draw.x0_hat,
                clean + direction,
                self._normaliser(clean, direction, teacher),
                kind=self.objective.distance,
                huber_c=None,
            )
            for weight, direction, teacher in terms
        )

    def _normaliser(self, clean: Tensor, direction: Tensor, teacher: Tensor) -> Tensor:
        own = self.settings.normaliser == "direction"
        return per_sample_mean((direction if own else clean - teacher).abs()).clamp(min=1e-6)

    @torch.no_grad()
    def _sampled(self, step, shape, student, cond, grid, streams) -> Epoch:
        """Sample trajectories, and compute their advantages."""
        x = torch.randn(shape, generator=streams.generator(step, "z"))
        states = [x]
        for k in range(grid.steps, 0, -1):
            upper, lower = (times_like(x, grid.times[i]) for i in (k, k - 1))
            x = ddim_step(self.process, x, student(x, upper, cond), upper, lower)
            states.insert(0, x)
        rewards = self.reward(x, step).float().view(-1, self.settings.group)
        offset = rewards - rewards.mean(1, keepdim=True)
        advantage = (offset / rewards.std().clamp(min=1e-6)).clamp(-LARGEST, LARGEST)
        order = torch.randperm(grid.steps, generator=streams.generator(step, "order")) + 1
        return Epoch(states, cond, advantage.flatten(), order.tolist())

    def _fake(self, objective, roles: Roles, draw: Draw, cond: Cond) -> Tensor:
        """Return the loss of TDM's fake, plus its distance to the reference."""
        loss = objective.loss("fake", roles, draw, cond)["loss"]
        with torch.no_grad():
            reference = self.surrogate.reference(draw.x_tau, draw.tau, cond)
        apart = self._apart(roles.fake(draw.x_tau, draw.tau, cond), reference, draw.tau)
        return loss + self.settings.fake_to_reference * apart.mean()

    def _preference(self, grid, drawn: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Return the surrogate's loss at a random step, and scalars to log."""
        settings, epoch, nets = self.settings, self.epoch, self.surrogate
        steps = grid.steps
        likely = torch.arange(steps, 0, -1.0)  # step 1, the cleanest, most often
        j = int(torch.multinomial(likely, 1, generator=drawn)) + 1
        state = epoch.states[j - 1]
        lower = times_like(state, grid.times[j - 1])
        x_tau, tau, target = self._noised(state, lower, settings.early, drawn)
        with torch.no_grad():
            reference, old = (net(x_tau, tau, epoch.cond) for net in (nets.reference, nets.old))
        predicted = nets.network(x_tau, tau, epoch.cond)
        d, d_old, d_ref = (self._apart(x, target, tau) for x in (predicted, old, reference))
        apart = self._apart(predicted, reference, tau)
        counted = self._counted(d.detach(), d_old, d_ref, bool(apart.mean() > settings.far))
        preferred = (epoch.advantage * (d.detach() - d_ref)).view(-1, settings.group).mean(1)
        weight = torch.sigmoid(settings.beta * preferred).repeat_interleave(settings.group)
        share = (steps - j + 1) / steps
        loss = share * (weight * counted * epoch.advantage * d).mean()
        found = {"counted": float(counted.mean()), "apart": float(apart.detach().mean())}
        return loss + settings.to_reference * apart.mean(), found

    def _counted(self, d: Tensor, d_old: Tensor, d_ref: Tensor, far: bool) -> Tensor:
        """Return 1 for samples that contribute, else 0: those that have not moved enough."""
        good, ratio = self.epoch.advantage > 0, (d_old - d).exp()
        moved = torch.where(good, ratio > 1 + self.settings.clip, ratio < 1 - self.settings.clip)
        right = torch.where(good, d < d_ref, d > d_ref)
        return (~(moved | (right & far))).float()

    def _noised(
        self, state: Tensor, lower: Tensor, early: float, drawn: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise states at s to a time above `early`, with the noise and time of each group.

        Returns samples, times, and the exact targets of the score of q(x_tau | x_s).
        """
        groups, process = len(state) // self.settings.group, self.process
        u = torch.rand(groups, generator=drawn)
        eps = torch.randn(groups, *state.shape[1:], generator=drawn)
        u, eps = (each.repeat_interleave(self.settings.group, 0) for each in (u, eps))
        low = torch.clamp(lower + self.objective.margin_low, min=early)
        tau = process.snap(low + u * (1 - low))
        x_tau, beta = process.renoise(state, eps, lower, tau), process.bridge(lower, tau)[1]
        draw = Draw(state, x_tau, lower, tau, eps, eps, beta, x_s=state)
        return x_tau, tau, exact_target(draw, process)

    def _apart(self, one: Tensor, other: Tensor, tau: Tensor) -> Tensor:
        """Return the squared distance of clean predictions as velocities, [B]."""
        weight = velocity_weight(self.process.alpha_sigma(tau)[1], self.objective.snr_ceiling)
        return weight * per_sample_mean((one - other).square())


def _at(epoch: Epoch, k: int, grid) -> Trajectory:
    """Return the trajectories of an epoch at s_k."""
    x = epoch.states[k]
    lower, upper = (times_like(x, grid.times[i]) for i in (k - 1, k))
    steps = torch.full((len(x),), k)
    return Trajectory(x, steps, lower, upper, epoch.cond, start=grid.times[-1])


def _take(engine, loss: Tensor):
    """Update a role, and return the result of the step."""
    engine.backward(loss)
    return engine.step(skip=~loss.detach().isfinite())
