"""What the guard found in a run, check by check: guard.json in the run's folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..config.json_files import read_json
from ..data.files import write_json
from .bands import Finding, Verdict

GUARD = "guard.json"
HELP = "docs/troubleshooting.md"


@dataclass(frozen=True)
class GuardCheck:
    """One comparison of the student with its teacher."""

    step: int
    """Iterations done."""
    student: dict[str, float]
    relative: dict[str, float]
    distance: float
    findings: tuple[Finding, ...]

    @property
    def badness(self) -> tuple[bool, float]:
        """Order of checks, the best first."""
        return bool(self.findings), self.distance


@dataclass(frozen=True)
class GuardRecord:
    """The checks of a run so far."""

    checks: tuple[GuardCheck, ...] = ()
    exported: int = 0
    """The iterations of the exported student; 0 if none was chosen."""

    @staticmethod
    def read(folder: Path) -> GuardRecord:
        """Read a run's record; an empty one where there is none."""
        path = Path(folder) / GUARD
        if not path.is_file():
            return GuardRecord()
        kept = read_json(path)
        checks = []
        for check in kept["checks"]:
            findings = tuple(Finding(**finding) for finding in check["findings"])
            checks.append(GuardCheck(**(check | {"findings": findings})))
        return GuardRecord(tuple(checks), kept["exported"])

    def write(self, folder: Path) -> None:
        """Write the record into a run's folder."""
        write_json(Path(folder) / GUARD, asdict(self))

    def until(self, step: int) -> GuardRecord:
        """Return the record without checks of later iterations."""
        return GuardRecord(tuple(check for check in self.checks if check.step <= step))

    def with_check(self, step: int, student: dict[str, float], verdict: Verdict) -> GuardRecord:
        """Return the record with one more check."""
        check = GuardCheck(step, student, verdict.relative, verdict.distance, verdict.findings)
        return replace(self, checks=(*self.checks, check))

    @property
    def best(self) -> int:
        """The iterations of the student that was closest to its teacher; 0 without a check."""
        return min(self.checks, key=lambda check: check.badness).step if self.checks else 0

    def best_of(self, steps: Collection[int]) -> int:
        """Return the iterations of the closest student among those; 0 if none was compared."""
        return GuardRecord(tuple(check for check in self.checks if check.step in steps)).best

    def open_measures(self) -> set[str]:
        """Return the measures that the last check found outside of their bands."""
        return {one.measure for one in self.checks[-1].findings} if self.checks else set()

    def about(self, step: int) -> GuardCheck | None:
        """Return the check of a student by its iterations."""
        return next((check for check in self.checks if check.step == step), None)

    def exported_check(self) -> GuardCheck | None:
        """Return the check of the exported student, or the last one."""
        return self.about(self.exported) or (self.checks[-1] if self.checks else None)

    def summary(self) -> str:
        """Return one line on the exported student, or on the last one checked; "" without a
        check.
        """
        check = self.exported_check()
        if check is None:
            return ""
        where = f"after {check.step:,} iterations"
        if not check.findings:
            return f"guard: the student {where} looks like its teacher by every measure"
        problems = "; ".join(f"{one.symptom} ({one.place})" for one in check.findings)
        return f"guard: NOT HEALTHY {where}: {problems}. Causes and settings: {HELP}"

    def story(self, step: int, steps: int) -> str:
        """Return what a card says of the student after `step` of `steps` iterations, after a space;
        "" if it was not compared.
        """
        check = self.about(step)
        if check is None:
            return ""
        chosen = ""
        if step != steps and step == self.best:
            chosen = (
                f" It is the student after {step:,} of {steps:,} iterations, the closest to its"
                " teacher of those compared."
            )
        if not check.findings:
            return f"{chosen} Its samples look like the teacher's by the guard's measures."
        problems = "; ".join(f"{one.symptom} ({one.place})" for one in check.findings)
        return f"{chosen} **The guard's measures say that it is not healthy:** {problems}."
