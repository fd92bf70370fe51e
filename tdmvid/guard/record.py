"""Store the guard's results of a run in its guard.json."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..config import short
from ..config.json_files import read_json
from ..data.files import write_json
from .bands import Finding, Verdict

GUARD = "guard.json"
HELP = "docs/troubleshooting.md"


@dataclass(frozen=True)
class GuardCheck:
    """One comparison of the student with its teacher."""

    step: int
    """Number of completed iterations."""
    student: dict[str, float]
    relative: dict[str, float]
    distance: float
    findings: tuple[Finding, ...]
    early: bool = False
    """Whether the comparison was the loose one of the start of training."""
    reference: str = ""
    """Digest of the settings of the teacher's samples. Distances to others cannot be compared."""


@dataclass(frozen=True)
class GuardRecord:
    """All checks of a run so far."""

    checks: tuple[GuardCheck, ...] = ()
    exported: int = 0
    """Number of iterations of the exported student; 0 if none was chosen."""

    @staticmethod
    def read(folder: Path) -> GuardRecord:
        """Read the record of a run.

        Args:
            folder: Folder of the run.

        Returns:
            The record; an empty one if the run has none.

        Raises:
            ValueError: The file is damaged, or not one of the guard.
        """
        path = Path(folder) / GUARD
        if not path.is_file():
            return GuardRecord()
        try:
            kept = read_json(path)
            checks = []
            for check in kept["checks"]:
                findings = tuple(Finding(**finding) for finding in check["findings"])
                checks.append(GuardCheck(**(check | {"findings": findings})))
            return GuardRecord(tuple(checks), kept["exported"])
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} is not a record of the guard ({short(str(error))}): delete it; the run"
                " then continues without its earlier comparisons"
            ) from error

    def write(self, folder: Path) -> None:
        """Write the record to a run's folder.

        Args:
            folder: Folder of the run.
        """
        write_json(Path(folder) / GUARD, asdict(self))

    def until(self, step: int) -> GuardRecord:
        """Return the record without checks of later iterations.

        Args:
            step: Last iteration to keep.

        Returns:
            A new record.
        """
        return GuardRecord(tuple(check for check in self.checks if check.step <= step))

    def with_check(
        self, step: int, student: dict[str, float], verdict: Verdict, reference: str = ""
    ) -> GuardRecord:
        """Return the record with one more check, instead of an earlier one of the same step.

        Args:
            step: Number of completed iterations.
            student: Measures of the student's samples, by name.
            verdict: Result of the comparison.
            reference: Digest of the settings of the teacher's samples.

        Returns:
            A new record.
        """
        measured = (verdict.relative, verdict.distance, verdict.findings, verdict.early, reference)
        others = (check for check in self.checks if check.step != step)
        return replace(self, checks=(*others, GuardCheck(step, student, *measured)))

    @property
    def best(self) -> int:
        """Number of iterations of the student closest to its teacher; 0 without a check. Checks
        against another reference than the last check's do not count.
        """
        return self.best_of([check.step for check in self.checks])

    def best_of(self, steps: Collection[int]) -> int:
        """Return the best of some students.

        Args:
            steps: Numbers of iterations to choose from.

        Returns:
            Number of iterations of the student closest to its teacher; 0 if none of them was
            compared.
        """
        reference = self.checks[-1].reference if self.checks else ""
        wanted = [one for one in self.checks if one.step in steps and one.reference == reference]
        return min(wanted, key=lambda check: check.distance).step if wanted else 0

    def open_measures(self) -> set[str]:
        """Return the measures that the last check found outside their bands.

        Returns:
            Names of measures.
        """
        return {one.measure for one in self.checks[-1].findings} if self.checks else set()

    def about(self, step: int) -> GuardCheck | None:
        """Return the check of a student.

        Args:
            step: Number of iterations of the student.

        Returns:
            The check; None if it was not compared.
        """
        return next((check for check in self.checks if check.step == step), None)

    def exported_check(self) -> GuardCheck | None:
        """Return the check of the exported student, or else the last check.

        Returns:
            The check; None if there is none.
        """
        return self.about(self.exported) or (self.checks[-1] if self.checks else None)

    def summary(self) -> str:
        """Summarize the check of the exported student, or the last check, in one line.

        Returns:
            The line; "" without a check.
        """
        check = self.exported_check()
        if check is None:
            return ""
        where = f"after {check.step:,} iterations"
        if not check.findings and check.early:
            return f"guard: no large fault {where}, but it is too early to judge the student"
        if not check.findings:
            return f"guard: the student {where} matches its teacher in every measure"
        problems = "; ".join(one.brief for one in check.findings)
        return f"guard: NOT HEALTHY {where}: {problems}. Causes and settings: {HELP}"

    def story(self, step: int, steps: int) -> str:
        """Describe the student after `step` of `steps` iterations for its model card.

        Args:
            step: Number of iterations of the student.
            steps: Number of iterations of the run.

        Returns:
            Sentences with a leading space; "" if the student was not compared.
        """
        check = self.about(step)
        if check is None:
            return ""
        chosen = ""
        if step != steps and step == self.best:
            chosen = (
                f" This is the student after {step:,} of {steps:,} iterations, the closest to its"
                " teacher of all students compared."
            )
        if not check.findings and check.early:
            return f"{chosen} The guard compared it so early that it looked for large faults only."
        if not check.findings:
            return f"{chosen} Its samples match the teacher's in all measures of the guard."
        problems = "; ".join(one.brief for one in check.findings)
        return f"{chosen} **The guard found problems:** {problems}."
