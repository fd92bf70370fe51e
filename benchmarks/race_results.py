"""Results of a race, stored one by one: a second start continues where the first stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tdmvid.config.json_files import read_object
from tdmvid.data.files import write_json


class Student(NamedTuple):
    """Distance of a trained student from its teacher, and the processor time of its training in
    seconds.
    """

    distance: float
    seconds: float


class Results:
    """Results of a race, optionally stored in a file.

    Args:
        path: JSON file; None keeps the results in memory only.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.found: dict[str, Any] = {}
        if path is not None and path.exists():
            self.found = read_object(path)

    def check(self, key: str, value: Any) -> None:
        """Store a setting that all results share, or compare it with the stored one.

        Args:
            key: Name of the setting.
            value: Its value.

        Raises:
            ValueError: The stored results have another value.
        """
        if self.found.setdefault(key, value) != value:
            raise ValueError(
                f"{key}={value}: the results in {self.path} have {self.found[key]}; choose another"
                " --results"
            )

    def counts(
        self, key: str, names: Sequence[str], measure: Callable[[], dict[str, int]]
    ) -> dict[str, int]:
        """Return the number of iterations of each pattern, which are measured together.

        Args:
            key: Name of the result.
            names: Patterns.
            measure: Measures all of them.

        Returns:
            Number of iterations by pattern.

        Raises:
            ValueError: The stored numbers lack a pattern.
        """
        counts = self.get(key, measure)
        if missing := [name for name in names if name not in counts]:
            raise ValueError(
                f"--patterns {missing[0]!r}: {self.path} has the {key} of other patterns only; use"
                f" those ({', '.join(counts)}), or choose another --results"
            )
        return counts

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return a result. If it is not known yet, measure, store and print it.

        Args:
            key: Name of the result.
            measure: Computes it.

        Returns:
            The result.
        """
        if key not in self.found:
            self.found[key] = measure()
            print(f"{key}: {self.found[key]}", flush=True)
            if self.path is not None:
                write_json(self.path, self.found)
        return self.found[key]
