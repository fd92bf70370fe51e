"""The healthy and the deliberately broken runs of `benchmarks.guard`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A run, given by its differences from the demo."""

    settings: tuple[str, ...] = ()
    iterations: int = 100
    broken: bool = True
    against: bool = False
    """Whether the student ascends its loss."""


def _healthy(*settings: str, iterations: int = 100) -> Recipe:
    return Recipe(settings, iterations, broken=False)


STOP = ('objective.rollout="stop"', 'objective.draws="own"')
FULL = ('objective.rollout="full"', 'objective.draws="own"')
RECIPES = {
    "demo": _healthy(),
    "wrong sign": Recipe(against=True),
    "frozen fake": Recipe(("fake.lr=1e-12",)),
    "far too much guidance": Recipe(("objective.cfg=15",)),
    "fake.lr=2e-5": Recipe(("fake.lr=2e-5",)),
    "student.lr=0.1": Recipe(("student.lr=0.1",)),
    "float16, student.lr=10": Recipe(('model.dtype="float16"', "student.lr=10")),
    "one prompt": Recipe(("prompts.limit=1",)),
    "stream": _healthy('objective.rollout="stream"'),
    "stream, shared draw": _healthy('objective.rollout="stream"', 'objective.draws="shared"'),
    "stop, shared draw": _healthy('objective.draws="shared"'),
    "demo, seed 1": _healthy("seed=1"),
    "full": _healthy(*FULL),
    "dmd2": _healthy('objective.kind="dmd2"', *STOP),
    "demo, 8 videos": _healthy("batch.micro=8"),
    "student.lr=0.1, 8 videos": Recipe(("student.lr=0.1", "batch.micro=8")),
    "no guidance, 8 videos": Recipe(("objective.cfg=1", "batch.micro=8")),
}
"""The runs by name."""
