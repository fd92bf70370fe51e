"""Check beforehand which files metrics need, and list the missing ones with their sources and
places.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Needed:
    """A file, folder or Python package that a metric needs.

    `path` is relative to the cache folder, or is the name of the package.
    """

    path: str
    source: str
    package: bool = False
    url: str = ""
    """Where a program downloads it, if `source` is not that address: a file, a .zip that contains
    it, "git+" with a repository, or "hub:" with the name of a model.
    """

    manual: bool = False
    """Whether no program can download it."""

    @property
    def fetched_from(self) -> str:
        """Address to download it from."""
        return self.url or self.source


@dataclass(frozen=True)
class Preflight:
    """Which metrics can run with the files that exist."""

    ready: tuple[str, ...]
    missing: Mapping[str, tuple[Needed, ...]]
    """What each unavailable metric lacks."""
    cache: Path

    @property
    def whole(self) -> bool:
        """Whether all requested metrics can run."""
        return not self.missing

    def describe(self) -> str:
        """List the available metrics, the unavailable ones, and each missing file once.

        Returns:
            Lines of text.
        """
        lines = [f"available: {', '.join(self.ready) or 'none'}"]
        if self.missing:
            lines.append(
                f"skipped, because files are missing in {self.cache}: {', '.join(self.missing)}"
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
    """Check what each metric needs. An empty file or folder, as left by a failed download, is
    missing.

    Args:
        metrics: Names of the metrics.
        needs: What each metric needs.
        cache: Folder of the files.
        packages: Packages of the environment that will run the metrics.

    Returns:
        Available and unavailable metrics.
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
