"""Settings of the time grid, the times at which the student is called."""

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
        "has no effect with grid.kind='uniform': use kind 'shifted', or remove it"
        " (--set grid.shift=1)",
    ),
    Rule(
        lambda grid: grid.kind != "explicit" and grid.timesteps,
        "grid.timesteps",
        "needs grid.kind='explicit', not {kind}: use that kind, or remove the timesteps"
        " (--set grid.timesteps=[])",
    ),
    Rule(
        lambda grid: (
            grid.kind == "explicit"
            and grid.timesteps
            and grid.steps not in (len(grid.timesteps), DEFAULT_STEPS)
        ),
        "grid.steps",
        "contradicts grid.kind='explicit', where the length of grid.timesteps={timesteps} is the"
        " number of steps: list that many timesteps, or use kind 'uniform' or 'shifted'",
    ),
    Rule(
        lambda grid: grid.kind == "explicit" and grid.shift != 1,
        "grid.shift",
        "has no effect with grid.kind='explicit', which lists the timesteps: remove it"
        " (--set grid.shift=1), or use kind 'shifted'",
    ),
    Rule(
        lambda grid: grid.kind == "explicit" and grid.start != 1,
        "grid.start",
        "has no effect with grid.kind='explicit', which lists the timesteps: remove it"
        " (--set grid.start=1), or use kind 'shifted'",
    ),
)


@dataclass(frozen=True)
class GridConfig:
    """Times of the student's calls. `distill/grids.py` builds the grid from these settings."""

    kind: Literal["uniform", "shifted", "explicit"] = "uniform"
    """Spacing of the times. `uniform`: even. `shifted`: a flow shift of the even grid. `explicit`:
    the times of `timesteps`.
    """
    steps: int = DEFAULT_STEPS
    """Number of student calls K, 1 to 1000. Kind `explicit` uses the length of `timesteps`."""
    start: float = 1.0
    """Time at which the trajectory starts, in (0, 1]; 1 is pure noise."""
    shift: float = 1.0
    """Flow shift for kind `shifted`, above 0: s' = shift s / (1 + (shift - 1) s). 1 gives the even
    grid; larger values move the steps towards noise.
    """
    timesteps: tuple[float, ...] = ()
    """Timesteps of the network in descending order for kind `explicit`, e.g.
    `[999, 856, 665, 399]`.
    """

    def __post_init__(self) -> None:
        check_rules(self, RULES)

    @property
    def calls(self) -> int:
        """Number of student calls K."""
        return len(self.timesteps) if self.kind == "explicit" else self.steps
