"""The times at which the student is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .ranges import ranges_of
from .rules import Rule, check_rules

DEFAULT_STEPS = 4
RULES = (
    *ranges_of("grid"),
    Rule(
        lambda grid: grid.kind == "uniform" and grid.shift != 1,
        "grid.shift",
        "has no effect with grid.kind='uniform': use kind 'shifted', or leave it out"
        " (--set grid.shift=1)",
    ),
    Rule(
        lambda grid: grid.kind != "explicit" and grid.timesteps,
        "grid.timesteps",
        "needs grid.kind='explicit', not {kind}: use that kind, or leave the timesteps out"
        " (--set grid.timesteps=[])",
    ),
    Rule(
        lambda grid: (
            grid.kind == "explicit"
            and grid.timesteps
            and grid.steps not in (len(grid.timesteps), DEFAULT_STEPS)
        ),
        "grid.steps",
        "has no effect with grid.kind='explicit', where grid.timesteps={timesteps} gives the number"
        " of steps: list as many timesteps, or use kind 'uniform' or 'shifted'",
    ),
    Rule(
        lambda grid: grid.kind == "explicit" and grid.shift != 1,
        "grid.shift",
        "has no effect with grid.kind='explicit', which lists the timesteps: leave it out"
        " (--set grid.shift=1), or use kind 'shifted'",
    ),
    Rule(
        lambda grid: grid.kind == "explicit" and grid.start != 1,
        "grid.start",
        "has no effect with grid.kind='explicit', which lists the timesteps: leave it out"
        " (--set grid.start=1), or use kind 'shifted'",
    ),
)


@dataclass(frozen=True)
class GridConfig:
    """The student's times; see diffusion/grid.py, and distill/grids.py, which builds them."""

    kind: Literal["uniform", "shifted", "explicit"] = "uniform"
    """uniform: evenly spaced times; shifted: the same with a flow shift; explicit: the list in
    `timesteps`.
    """
    steps: int = DEFAULT_STEPS
    """Number of steps K of the student. With kind explicit, the length of `timesteps` is used."""
    start: float = 1.0
    """Time of the first step; 1 is pure noise."""
    shift: float = 1.0
    """Flow shift of kind shifted: time t becomes shift t / (1 + (shift - 1) t). 1 is an even grid,
    larger values move the steps towards noise.
    """
    timesteps: tuple[float, ...] = ()
    """Timesteps of kind explicit, in the network's own units."""

    def __post_init__(self) -> None:
        check_rules(self, RULES)

    @property
    def calls(self) -> int:
        """The number of steps K."""
        return len(self.timesteps) if self.kind == "explicit" else self.steps
