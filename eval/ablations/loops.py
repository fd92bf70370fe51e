"""Train a run with an iteration function that is not part of tdmvid: baselines and other methods.

A run keeps its networks, engines and random numbers. It is not stored on the way, so a second start
begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tdmvid.config import RunConfig
from tdmvid.data.progress import progress
from tdmvid.distill.iteration import Outcome
from tdmvid.distill.objective import build_objective
from tdmvid.parallel import launch
from tdmvid.train.run import Run, build_run
from tdmvid.train.trainer import prompt_indices

Indices = Callable[[int], list[int]]
"""(iteration) -> indices of the prompts of its only micro-batch, B numbers."""


@dataclass(frozen=True)
class Method:
    """An iteration function, and the prompts that it uses."""

    turn: Callable[..., Outcome]
    """Called like `tdmvid.distill.iteration.iterate` with a single micro-batch."""
    indices: Indices
    """Prompts of an iteration."""


def in_order(run: Run) -> Indices:
    """Return the prompts in the order in which `tdmvid train` uses them without streaming.

    Args:
        run: A run with one micro-batch.

    Returns:
        The function.
    """
    return lambda step: prompt_indices(run, step)[0]


def start(config: RunConfig) -> Run:
    """Build a run on one process.

    Args:
        config: Its settings. Trajectories are not kept between iterations.

    Returns:
        The run.

    Raises:
        ValueError: A setting is invalid.
    """
    assert config.objective.rollout != "stream" and config.batch.accumulation == 1
    return build_run(config, launch.start("none"))


def iterations(run: Run, method: Method) -> Iterator[dict[str, float]]:
    """Train for the iterations of the run's config.

    Args:
        run: The run.
        method: What an iteration does.

    Yields:
        The scalars of each iteration.

    Raises:
        RuntimeError: A loss or gradient is not finite.
    """
    with progress("training", total=run.config.steps) as bar:
        for step in range(run.config.steps):
            scalars = iterate(run, method, step)
            bar.update()
            yield scalars


def iterate(run: Run, method: Method, step: int) -> dict[str, float]:
    """Run one iteration.

    Args:
        run: The run.
        method: What an iteration does.
        step: The iteration.

    Returns:
        Its scalars.

    Raises:
        RuntimeError: A loss or gradient is not finite.
    """
    outcome = method.turn(
        step,
        [run.conds(method.indices(step))],
        (run.config.batch.micro, *run.backbone.latent_shape()),
        objective=build_objective(run.config.objective),
        roles=run.roles,
        engines=run.engines,
        grid=run.grid,
        streams=run.streams,
    )
    if outcome.failed:
        raise RuntimeError(f"iteration {step}: the {outcome.failed}'s loss is not finite")
    return outcome.scalars
