"""The call pattern of TDM's published training loop, on this project's networks and losses.

Written from its description: at K = 4 with guidance it makes 11 forward and 2 backward passes. The
student is rolled out over the whole grid, with its own k for every sample. Each phase calls it
again at s_k. The fake's phase calls the teacher without using the result. The two branches of
guidance are two calls of the teacher.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.sampler import Trajectory, rollout
from tdmvid.distill.iteration import Outcome
from tdmvid.distill.objective import Roles


class TwoCalls:
    """Classifier-free guidance with two calls of the network.

    Args:
        guided: The guided network with one batched call.
    """

    def __init__(self, guided: Guided):
        self.guided, self.process = guided, guided.process

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        without = self.guided.denoiser(x_t, t, self.guided.null.expand(len(x_t)))
        scale = self.guided.scale(x_t, t)
        with_ = self.guided.denoiser(x_t, t, cond)
        return self.guided.combine(x_t, without, with_, scale)


def published(
    step: int,
    conds: list[Cond],
    noise_shape: tuple[int, ...],
    *,
    objective,
    roles: Roles,
    engines,
    grid,
    streams,
    first_stream=0,
) -> Outcome:
    """Run one iteration with the published call pattern.

    It is called like `tdmvid.distill.iteration.iterate` with a single micro-batch, and uses the
    same random draws.

    Args:
        step: The iteration.
        conds: Conditioning of the single micro-batch.
        noise_shape: Shape of its latents, [B, ...].
        objective: The objective.
        roles: Student, fake and teacher.
        engines: Engines of the trained roles.
        grid: Times of the sampling steps.
        streams: Random number generators.
        first_stream: Global index of the micro-batch.

    Returns:
        Scalars, and the role that failed if any.
    """
    (cond,) = conds

    def generator(name):
        return streams.generator(step, name, first_stream)

    k = torch.randint(
        1, grid.steps + 1, noise_shape[:1], generator=generator("k"), device=streams.device
    )
    z = torch.randn(noise_shape, generator=generator("z"), device=streams.device)
    path = rollout(
        roles.student,
        z,
        cond,
        grid,
        k,
        calls=grid.steps,
        solver=objective.solver,
        generator=generator("renoise"),
    )
    guided = isinstance(roles.teacher, Guided) and roles.teacher.cfg != 1
    scalars = {}
    for turn, role in enumerate(("fake", "student")):
        terms = _phase(
            role,
            path,
            generator(f"{role}/{turn}"),
            objective,
            roles,
            teacher=TwoCalls(roles.teacher) if guided else roles.teacher,
        )
        engines[role].backward(terms["loss"])
        finite = bool(terms["loss"].isfinite())
        result = engines[role].step(skip=not finite)
        scalars |= {f"{name}/{role}": value.item() for name, value in terms.items()}
        if not result.applied:
            return Outcome(scalars, failed=role)
    return Outcome(scalars)


def _phase(
    role: str, path: Trajectory, generator: torch.Generator, objective, roles: Roles, *, teacher
) -> dict[str, Tensor]:
    """Call the student (with gradients only in its own phase), draw, and compute the role's
    loss.
    """
    with torch.set_grad_enabled(role == "student"):
        x0_hat = roles.student(path.x, path.upper, path.cond)
    draw = objective.draw(path, x0_hat, generator, roles.student.process)
    if role == "fake":
        with torch.no_grad():
            (teacher.guided.denoiser if isinstance(teacher, TwoCalls) else teacher)(
                draw.x_tau, draw.tau, path.cond
            )
    return objective.loss(role, replace(roles, teacher=teacher), draw, path.cond)
