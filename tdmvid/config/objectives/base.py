"""What a method declares to the training loop and the plan, and finding its settings by `kind`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from ..ranges import ranges_of
from ..rules import Rule, check_rules

Solver = Literal["ddim", "dpm++", "renoise"]
"""How a student's trajectory goes on, see diffusion/sampler.py."""
RULES = (
    *ranges_of("objective", ("cfg", "cfg_2", "cfg_interval", "step_set")),
    Rule(
        lambda objective: (
            len(objective.cfg_interval) != 2
            or objective.cfg_interval[0] >= objective.cfg_interval[1]
        ),
        "objective.cfg_interval",
        "must be two times, the smaller first, e.g. [0.2, 0.9]",
    ),
    Rule(
        lambda objective: not objective.guided and objective.cfg_interval != (0.0, 1.0),
        "objective.cfg_interval",
        "has no effect with cfg={cfg}, which is no guidance: leave it out, or set a guidance",
    ),
    Rule(
        lambda objective: not objective.guided and objective.use_dynamic_cfg,
        "objective.use_dynamic_cfg",
        "has no effect with cfg={cfg}, which is no guidance: leave it out, or set a guidance",
    ),
    Rule(
        lambda objective: objective.cfg_2 is not None and objective.cfg == 1,
        "objective.cfg_2",
        "has no effect with objective.cfg={cfg}: the stock call takes that for no guidance of"
        " either expert: leave it out (--set objective.cfg_2=null), or set a guidance",
    ),
    Rule(
        lambda objective: len(set(objective.step_set)) < len(objective.step_set),
        "objective.step_set",
        "must list each number of steps once",
    ),
    Rule(
        lambda objective: objective.stagger == "none" and objective.rollout != "stream",
        "objective.stagger",
        "has no effect with rollout={rollout}, where no trajectory goes on: leave it out, or use"
        " rollout='stream'",
    ),
)


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings that the loop and the plan read of every method.

    A method subclasses this with a default for `kind`, its `roles` and settings of its own.
    """

    kind: str = ""
    """The distillation method, which decides what other settings there are."""
    cfg: float = 1.0
    """The teacher's guidance; 1 is none."""
    cfg_interval: tuple[float, ...] = (0.0, 1.0)
    """Times from which and to which there is guidance, both included; 1 is noise, 0 is clean.
    Elsewhere the teacher is unguided.
    """
    use_dynamic_cfg: bool = False
    """As of CogVideoX's stock call: the scale swings between 1 and 1 + cfg, by a formula of the
    timestep and of the number of steps, which is `log.teacher_steps` here.
    """
    cfg_2: float | None = None
    """That of the low-noise expert of a teacher of two; None: the same."""
    solver: Solver = "ddim"
    """How the student's trajectory goes on, see diffusion/sampler.py."""
    step_set: tuple[int, ...] = ()
    """Draw K from these every iteration (TDM-unify); empty trains the grid's own K alone."""
    k_condition: bool = True
    """Condition student and fake on which K of the set it is, see adapters/step_condition.py."""
    draws: Literal["own", "shared"] = "own"
    """own: each turn has its own draw, and the student sees the updated fake; shared: one draw and
    one call of the fake serve both.
    """
    rollout: Literal["stop", "full", "stream"] = "stop"
    """stop: a k for each micro-batch of a rank, the same on all ranks, and the rollout ends there;
    full: a k per sample, K - 1 calls. With stop, numbers depend on `batch.accumulation`.
    stream: no rollout; every sample's trajectory goes on by one step an iteration.
    """
    stagger: Literal["even", "none"] = "even"
    """even: the trajectories of a stream are spread over the steps, so that each iteration covers
    all k where the global batch is a multiple of K; none: all stand at the same k.
    """
    updates: Literal["sequential", "joint"] = "sequential"
    """sequential: the student meets the updated fake; with accumulation its graded call is made
    twice. joint: each micro-batch takes all turns, and all roles are updated at the end.
    """

    rules: ClassVar[tuple[Rule, ...]] = RULES
    through_scores: ClassVar[bool] = False
    """Whether the student's gradient is taken through fake and teacher."""

    def __post_init__(self) -> None:
        check_rules(self, self.rules)

    @property
    def roles(self) -> tuple[str, ...]:
        """The order of optimiser steps in one iteration, e.g. ("fake", "student")."""
        raise NotImplementedError(f"{type(self).__name__}.roles")

    @property
    def own_trajectories(self) -> int:
        """How many of the first turns roll out trajectories of their own; the others share some."""
        return 0

    @property
    def guided(self) -> bool:
        """Whether the teacher is called without a prompt, too."""
        return self.cfg != 1

    @property
    def conditioned_on_steps(self) -> bool:
        """Whether the networks get K as a condition."""
        return bool(self.step_set) and self.k_condition


SETTINGS: dict[str, type[ObjectiveSettings]] = {}
_Settings = TypeVar("_Settings", bound=ObjectiveSettings)


def register_settings(cls: type[_Settings]) -> type[_Settings]:
    """Register a method's settings under the default of their `kind` (a class decorator)."""
    SETTINGS[cls().kind] = cls
    return cls


def objective_settings() -> dict[str, type[ObjectiveSettings]]:
    """Return the settings of all methods by kind; imports every file of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    return SETTINGS
