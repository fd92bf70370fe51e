"""Settings that all distillation methods share, and a registry of settings classes by `kind`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from ..ranges import ranges_of
from ..rules import Rule, check_rules

Solver = Literal["ddim", "dpm++", "renoise"]
"""Solver of the student's trajectory; see `diffusion.sampler.Solver`."""
RULES = (
    *ranges_of("objective", ("cfg", "cfg_2", "cfg_interval", "step_set")),
    Rule(
        lambda objective: (
            len(objective.cfg_interval) != 2
            or objective.cfg_interval[0] >= objective.cfg_interval[1]
        ),
        "objective.cfg_interval",
        "must be two times in ascending order, e.g. [0.2, 0.9]",
    ),
    Rule(
        lambda objective: not objective.guided and objective.cfg_interval != (0.0, 1.0),
        "objective.cfg_interval",
        "has no effect with cfg={cfg}, which turns guidance off: remove it, or change cfg",
    ),
    Rule(
        lambda objective: not objective.guided and objective.use_dynamic_cfg,
        "objective.use_dynamic_cfg",
        "has no effect with cfg={cfg}, which turns guidance off: remove it, or change cfg",
    ),
    Rule(
        lambda objective: objective.cfg_2 is not None and objective.cfg == 1,
        "objective.cfg_2",
        "has no effect with objective.cfg={cfg}, which turns guidance off for both experts in the"
        " diffusers pipeline: remove it (--set objective.cfg_2=null), or change objective.cfg",
    ),
    Rule(
        lambda objective: len(set(objective.step_set)) < len(objective.step_set),
        "objective.step_set",
        "must list each number of steps once",
    ),
    Rule(
        lambda objective: objective.stagger == "none" and objective.rollout != "stream",
        "objective.stagger",
        "has no effect with rollout={rollout}, which starts new trajectories in every iteration:"
        " remove it, or use rollout='stream'",
    ),
)


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of every method that the training loop and the plan read.

    A method subclasses this class, gives `kind` a default, defines `roles` and adds its own
    settings.
    """

    title: ClassVar[str] = ""
    """Name and source of the method, for model cards."""
    kind: str = ""
    """Distillation method: `tdm`, `dmd2`, `fisher` or `gan`."""
    cfg: float = 1.0
    """Classifier-free guidance scale of the teacher, 1 to 1000. 1 means no guidance."""
    cfg_interval: tuple[float, ...] = (0.0, 1.0)
    """First and last time with guidance, both included. Times are in [0, 1]: 0 is clean, 1 is
    noise. Outside the interval the teacher is unguided.
    """
    use_dynamic_cfg: bool = False
    """Vary the guidance scale between 1 and `1 + cfg`, as `use_dynamic_cfg` of the CogVideoX
    pipeline does. The formula depends on the timestep and on the number of steps; here that number
    is `log.teacher_steps`.
    """
    cfg_2: float | None = None
    """Guidance scale of the low-noise expert of a teacher with two experts, 1 to 1000. `null` uses
    `cfg` for both experts.
    """
    solver: Solver = "ddim"
    """Solver of the student's trajectory. `ddim`: deterministic, first order. `dpm++`:
    DPM-Solver++ 2M, deterministic, second order. `renoise`: adds fresh noise to each clean
    prediction (the sampler of consistency models and DMD2).
    """
    step_set: tuple[int, ...] = ()
    """Numbers of steps K to train, e.g. `[1, 2, 4]`; one is drawn in every iteration (TDM-unify).
    An empty list trains only the K of the grid.
    """
    k_condition: bool = True
    """Condition student and fake on K when `step_set` is given; see adapters/step_condition.py."""
    draws: Literal["own", "shared"] = "own"
    """`own`: fake and student each draw tau and noise, and the student sees the updated fake.
    `shared`: one draw and one call of the fake serve both updates, which saves one forward pass.
    """
    rollout: Literal["stop", "full", "stream"] = "stop"
    """`stop`: draw one step k per micro-batch, the same on all ranks, and roll the student out to
    that step; results depend on `batch.accumulation`. `full`: draw k per sample and always make
    K - 1 calls. `stream`: keep each sample's trajectory between iterations and advance it by one
    step per iteration; nothing is rolled out.
    """
    stagger: Literal["even", "none"] = "even"
    """Start positions of the trajectories of `rollout: stream`. `even`: spread over the steps, so
    each iteration covers all k if the global batch is a multiple of K. `none`: all trajectories are
    at the same k.
    """
    updates: Literal["sequential", "joint"] = "sequential"
    """`sequential`: update the fake first, then the student; with gradient accumulation the
    student's call is made twice. `joint`: compute the losses of all roles for each micro-batch, and
    update all roles at the end.
    """
    finished_predictions: Literal["renewed", "stored"] = "renewed"
    """Predictions from which the fake learns with rewards and `rollout: stream`, on the states of
    finished trajectories. `renewed`: the present student's, for one more call. `stored`: those of
    the trajectory itself, made up to 2 K - 1 updates ago; the fake then follows a fast student too
    late, and both diverge.
    """

    rules: ClassVar[tuple[Rule, ...]] = RULES
    through_scores: ClassVar[bool] = False
    """Whether the student's gradient passes through fake and teacher."""

    def __post_init__(self) -> None:
        check_rules(self, self.rules)

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles in the order of their optimiser steps in an iteration, e.g. ("fake", "student")."""
        raise NotImplementedError(f"{type(self).__name__}.roles")

    @property
    def own_trajectories(self) -> int:
        """Number of leading updates that use their own trajectories; the rest share one set."""
        return 0

    @property
    def guided(self) -> bool:
        """Whether the teacher is also called without a prompt, for guidance."""
        return self.cfg != 1

    @property
    def conditioned_on_steps(self) -> bool:
        """Whether student and fake get the number of steps K as a condition."""
        return bool(self.step_set) and self.k_condition


SETTINGS: dict[str, type[ObjectiveSettings]] = {}
_Settings = TypeVar("_Settings", bound=ObjectiveSettings)


def register_settings(cls: type[_Settings]) -> type[_Settings]:
    """Register a settings class under the default of its `kind`. Use as a class decorator.

    Args:
        cls: Dataclass of settings; all fields need defaults.

    Returns:
        The same class.
    """
    SETTINGS[cls().kind] = cls
    return cls


def objective_settings() -> dict[str, type[ObjectiveSettings]]:
    """Import every module of this package and return the registered settings classes.

    Returns:
        A mapping from `kind` to settings class.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return SETTINGS
