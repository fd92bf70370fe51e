"""Compare the results of two evaluations with the same protocol, for example of two machines or
versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import ImageConfig, VBenchConfig, to_dict
from ..config.json_files import read_object
from ..data.files import short
from ..export.base_name import name_base
from .intervals import Measure, measure_of
from .paired_samples import NAMES, PROMPTS
from .vbench_scores import skips_videos

RESULTS = "results.json"
LOCAL = {"batch", "embeddings", "environment", "cache", "pairs"}
"""Settings of an evaluation that do not affect results."""
INPUTS = {"prompts", "column", "augmented", "images"}
"""Settings that say where prompts and first frames are read."""
PLACES = {"path", "path_2", "prompts", "augmented", "images", "reference"}
"""Settings that name a file or folder, which may be in different places on different machines."""


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of an evaluation.

    Args:
        path: The results file, or its folder.

    Returns:
        Contents of the file.

    Raises:
        ValueError: There is no results file.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{str(path)!r} contains no {RESULTS}: give the folder or file written by `tdmvid score"
            " vbench` or `tdmvid score images`"
        )
    found = read_object(file)
    missing = [key for key in ("title", "protocol", "samplers", "differences") if key not in found]
    if missing:
        raise ValueError(f"{file} is not a results file of an evaluation: it has no {missing[0]!r}")
    return found


def compare(first: Path, second: Path) -> str:
    """Compare the scores of both students and both teachers.

    Two scores agree if the 95 % interval of each contains the other's value. Scores without an
    interval, for example of one prompt, are listed without a verdict.

    Args:
        first: Results file or folder of one evaluation.
        second: Results file or folder of the other.

    Returns:
        A table of scores.

    Raises:
        ValueError: Their protocols differ. The message names the difference.
    """
    one, other = read_results(first), read_results(second)
    for name, ours, theirs in _protocol_differences(one, other):
        raise ValueError(
            f"{second} and {first} have different protocols: {name} is {short(theirs)} instead of"
            f" {short(ours)}; score both with the same config and prompts"
        )
    rows: list[tuple[str, ...]] = [("", "", str(first), str(second), "difference", "")]
    for mine, yours in zip(one["samplers"], other["samplers"], strict=True):
        rows += _rows(mine, yours)
    rows += _set_rows(_sets(one), _sets(other))
    same = one.get("weights") == other.get("weights")
    weights = "the same student" if same else "two students"
    return f"{one['protocol']}\n{weights}\n\n{_columns(rows)}"


def _protocol_differences(one: dict, other: dict) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that affect results and differ: name and both values."""
    digests = [results.get(PROMPTS) for results in (one, other)]
    # Results of earlier versions have no digest of the prompts, only the names of their files.
    left_out = LOCAL | INPUTS if all(digests) else LOCAL
    facts = [_flat(_protocol(results, left_out)) for results in (one, other)]
    default = _defaults(one)  # of settings that a version did not have yet
    for name in sorted(facts[0].keys() | facts[1].keys()):
        ours, theirs = (_portable(name, each.get(name, default.get(name))) for each in facts)
        if ours != theirs:
            yield name, ours, theirs
    if all(digests) and digests[0] != digests[1]:
        yield "the digest of the prompts", digests[0], digests[1]


def _defaults(results: dict) -> dict[str, Any]:
    """Return the defaults of the settings of an evaluation, by dotted name."""
    kind = ImageConfig if results["title"].startswith("Images") else VBenchConfig
    return _flat({"config": to_dict(kind())})


def _protocol(results: dict, left_out: set[str]) -> dict[str, Any]:
    """Return everything that determines the results: the settings first, then what follows from
    them.
    """
    config = {k: v for k, v in results.get("config", {}).items() if k not in left_out}
    model = results.get("model", {})
    used = {key: model.get(key) for key in ("path", "revision", "dtype") if model}
    count, _, text = results["protocol"].partition(" prompts")
    version = re.search(r"; vbench ([\w.]+)", text)
    return {
        "config": config,
        "evaluation": results["title"].partition(":")[0],
        "model": used | {"adapters": model.get("adapters") or []},
        "number of prompts": count,
        "samplers": [side["name"] for side in results["samplers"]],
        "scores": [
            name for name in sorted(results["samplers"][0]["scores"]) if not skips_videos(name)
        ],
        "scores of sets": sorted(f"{name} of {what}" for what, name in _sets(results)),
        "vbench": version and version[1],
        "videos_scored": {
            name: count
            for name, count in (results.get("videos_scored") or {}).items()
            if not skips_videos(name)
        },
    }


def _rows(mine: dict, yours: dict) -> Iterator[tuple[str, ...]]:
    """Yield one row per score of a sampler; a dash where the other evaluation has none."""
    for name, ours in mine["scores"].items():
        if name not in yours["scores"]:
            yield mine["name"], name, f"{ours['value']:.4f}", "-", "-", "-"
            continue
        theirs = yours["scores"][name]
        yield (
            mine["name"],
            name,
            f"{ours['value']:.4f}",
            f"{theirs['value']:.4f}",
            f"{theirs['value'] - ours['value']:+.4f}",
            _verdict(measure_of(ours), measure_of(theirs)),
        )


def _sets(results: dict) -> dict[tuple[str, str], float]:
    """Return the metrics of whole sets, such as FID, by comparison and name. The folder of real
    images is named without its place.
    """
    place = results.get("config", {}).get("reference") or ""
    portable = {f"{side} to {place}": f"{side} to {Path(place).name}" for side in NAMES}
    return {
        (portable.get(what, what), name): value
        for what, found in results.get("sets", {}).items()
        for name, value in found.items()
    }


def _set_rows(ours: dict, theirs: dict) -> Iterator[tuple[str, ...]]:
    """Yield one row per metric of whole sets, which has no interval and so no verdict."""
    for (what, name), value in ours.items():
        other = theirs[what, name]
        yield what, name, f"{value:.4f}", f"{other:.4f}", f"{other - value:+.4f}", ""


def _verdict(ours: Measure, theirs: Measure) -> str:
    if ours.interval is None or theirs.interval is None:
        return "no interval"
    return "agree" if ours.holds(theirs.value) and theirs.holds(ours.value) else "DIFFER"


def _portable(name: str, value: Any) -> Any:
    """Return a setting in a form that is equal on all machines."""
    if name.rpartition(".")[2] not in PLACES or not isinstance(value, str):
        return value
    if name.endswith("model.path"):  # a copy of a hub's model may lie in a folder
        return name_base({"path": value}).title.rpartition("/")[2]
    return Path(value).name


def _flat(value: Any, where: str = "") -> dict[str, Any]:
    """Return the leaves of nested objects and of lists of objects by dotted name."""
    if isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        value = {str(index): inner for index, inner in enumerate(value)}
    if not isinstance(value, dict):
        return {where: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{where}.{key}" if where else str(key))
    return found


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
