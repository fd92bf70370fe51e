"""Count the network calls of an iteration from a config alone."""

from __future__ import annotations

from ..config import RunConfig


def calls_per_iteration(config: RunConfig) -> tuple[float, int]:
    """Return the number of whole-batch network calls per micro-batch of one iteration.

    An iteration consists of the rollout (none with streaming), the graded student call, the updates
    of the fake (one forward and one backward pass each), and the student's turn (one teacher call,
    or two with guidance; one fake call unless the draw is shared; one backward pass). With gradient
    accumulation the graded call is made twice, unless each micro-batch takes all turns. A turn with
    its own trajectories adds a rollout and a student call. Taking the gradient through the scores
    adds their backward passes.

    Args:
        config: Settings of the run.

    Returns:
        The mean number of forward passes and the number of backward passes.
    """
    objective = config.objective
    steps = float(config.grid.calls)
    if objective.step_set:
        steps = sum(objective.step_set) / len(objective.step_set)
    rollout = {"full": steps - 1, "stop": (steps - 1) / 2, "stream": 0.0}[objective.rollout]
    graded = 2 if graded_twice(config) else 1
    teacher = teacher_calls(config)
    scores = 1 + teacher if objective.through_scores else 0
    updates = objective.roles.count("fake")
    fake = updates + (objective.draws == "own") if updates else 0
    own = objective.own_trajectories * (rollout + 1)
    rewarded = calls_of_rewards(config, steps) * (1 + objective.own_trajectories)
    return rollout + graded + own + fake + teacher + rewarded, updates + 1 + scores


def calls_of_rewards(config: RunConfig, steps: float) -> float:
    """Return the mean number of calls that rewards add for a set of trajectories: those that
    complete a rollout, or that renew the predictions of a finished trajectory.

    Args:
        config: Settings of the run.
        steps: Number of sampling steps K.

    Returns:
        Mean number of network calls; 0 without rewards.
    """
    if not config.rewards:
        return 0.0
    # Only one graph is alive at a time, so joint updates make the last rollout call twice.
    again = config.objective.updates == "joint" and config.batch.accumulation > 1
    renewed = config.objective.finished_predictions == "renewed"
    added = {"full": 1.0, "stop": (steps - 1) / 2 + again, "stream": float(renewed)}
    return added[config.objective.rollout]


def graded_twice(config: RunConfig) -> bool:
    """Return whether the graded student call is made twice: without a graph for the fake, then with
    one.

    Args:
        config: Settings of the run.

    Returns:
        True if the call is repeated.
    """
    # With rewards and streaming, the fake learns from completed trajectories.
    own_turns = not (config.rewards and config.objective.rollout == "stream")
    return config.batch.accumulation > 1 and config.objective.updates == "sequential" and own_turns


def teacher_calls(config: RunConfig) -> int:
    """Return the number of network calls that one teacher prediction needs.

    Args:
        config: Settings of the run.

    Returns:
        2 with classifier-free guidance, else 1.
    """
    return 2 if config.objective.guided else 1


def needs_launcher(config: RunConfig) -> str:
    """Return the setting that requires a launcher also for one rank.

    Args:
        config: Settings of the run.

    Returns:
        The setting; "" if there is none.
    """
    parallel = config.parallel
    if parallel.offload != "none":
        return f"parallel.offload={parallel.offload!r}"
    return "parallel.backend='deepspeed'" if parallel.backend == "deepspeed" else ""
