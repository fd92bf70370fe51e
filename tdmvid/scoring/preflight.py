"""Which files a metric needs before it can run: said beforehand, all at once, with their sources
and places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Needed:
    """What a metric reads: a file or folder, by its place under the cache folder, or a Python
    package, by its name.
    """

    path: str
    source: str
    package: bool = False
    url: str = ""
    """Where a program fetches it, if `source` is not that address: of a file, of a .zip that holds
    it, "git+" with a repository, or "hub:" with the name of a model.
    """

    @property
    def fetched_from(self) -> str:
        """Return where a program fetches it."""
        return self.url or self.source


@dataclass(frozen=True)
class Preflight:
    """What can run with the files that are there."""

    ready: tuple[str, ...]
    missing: Mapping[str, tuple[Needed, ...]]
    """Metric -> the files it lacks."""
    cache: Path

    @property
    def whole(self) -> bool:
        """Return whether everything that was asked for can run."""
        return not self.missing

    def describe(self) -> str:
        """Return lines for a person: what runs, what does not, and each missing file once."""
        lines = [f"runs without more files: {', '.join(self.ready) or 'nothing'}"]
        if self.missing:
            lines.append(
                f"left out for want of files under {self.cache}: {', '.join(self.missing)}"
            )
            for need in dict.fromkeys(need for needs in self.missing.values() for need in needs):
                users = [metric for metric, needs in self.missing.items() if need in needs]
                lines.append(
                    f"  {'package ' * need.package}{need.path}\n      from {need.source}\n      for"
                    f" {', '.join(users)}"
                )
        return "\n".join(lines)


def preflight(
    metrics: list[str],
    needs: Mapping[str, tuple[Needed, ...]],
    cache: Path,
    *,
    packages: Collection[str] = (),
) -> Preflight:
    """Check what each metric needs; an empty file or folder, which a broken download leaves, is
    missing.

    packages: those that the environment which will run the metrics has.
    """
    missing = {}
    for metric in metrics:
        lacking = tuple(
            need
            for need in needs.get(metric, ())
            if not (need.path in packages if need.package else _there(cache / need.path))
        )
        if lacking:
            missing[metric] = lacking
    return Preflight(tuple(metric for metric in metrics if metric not in missing), missing, cache)


def _there(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
