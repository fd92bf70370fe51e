"""The record of a folder of samples: its settings, and a line for each video that was made.

Each rank writes to a part of its own, because ranks on several machines share no file; the first
rank gathers the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from ..config.json_files import read_object
from ..data.files import short, write_json, write_text
from ..data.items import MANIFEST
from ..data.media import file_inside, is_whole
from .shots import Shot

SETTINGS = "sampling.json"


def claim_folder(out: Path, settings: dict, shots: list[Shot]) -> set[str]:
    """Take the folder for these settings and return the names of the files that it has, whole.

    Raises:
        ValueError: if it has other settings, or one of the files for another prompt.
    """
    path = out / SETTINGS
    if path.is_file():
        there = read_object(path)
        for key, value in settings.items():
            if key != "student" and there.get(key) != value:
                raise ValueError(
                    f"{out} holds videos of {key}={_told(there.get(key))}, these have"
                    f" {_told(value)}: use the same, or another --out"
                )
    wanted = {shot.file: shot for shot in shots}
    for entry in read_manifest(out):
        shot = wanted.get(entry["file"])
        if shot and (shot.prompt, shot.seed) != (entry.get("prompt"), entry.get("seed")):
            raise ValueError(
                f"{out / shot.file} shows {entry.get('prompt')!r} of seed {entry.get('seed')},"
                f" not {shot.prompt!r} of seed {shot.seed}: use the same prompts and seeds, or"
                " another --out"
            )
        if shot and shot.image_sha256 != entry.get("image_sha256", ""):
            raise ValueError(
                f"{out / shot.file} starts from another image than {_told(shot.image)}: use the"
                " same, or another --out"
            )
    write_json(path, settings)
    gather_manifest(out)
    size = {name: settings["video"][name] for name in ("frames", "height", "width")}
    listed = {entry["file"] for entry in read_manifest(out)}
    return {file for file in wanted if file in listed and _made(out, file, size)}


def _made(out: Path, file: str, size: dict[str, int]) -> bool:
    """Return whether a sample lies in the folder, and can be read to its end."""
    try:
        path = file_inside(out, file)
    except ValueError:  # a link to somewhere else
        return False
    return path.is_file() and is_whole(path, **size)


def _told(value: object) -> str:
    """A value in a message; a long text, as a negative prompt may be, is cut."""
    return short(value) if isinstance(value, str) else repr(value)


def read_manifest(out: Path) -> list[dict]:
    """Return what was made so far: prompt, seed, file and settings of each video; the last line of
    a killed rank may be cut.
    """
    entries = {}
    for path in [out / MANIFEST, *sorted(out.glob(f".*.{MANIFEST}"))]:
        try:
            # splitlines() would cut at a U+2028 in a prompt.
            lines = path.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:  # not there yet, or another job has just gathered it
            continue
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get("file"), str):
                entries[entry["file"]] = entry
    return [entries[file] for file in sorted(entries)]


def gather_manifest(out: Path, made: Iterable[dict] = ()) -> None:
    """Write one manifest from the ranks' own.

    Args:
        made: entries that belong there; where two jobs gather in one folder, lines may be lost.
    """
    found = {entry["file"]: entry for entry in made} | {
        entry["file"]: entry for entry in read_manifest(out)
    }
    entries = [found[file] for file in sorted(found)]
    if entries:
        write_text(
            out / MANIFEST,
            "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries),
        )
    for part in out.glob(f".*.{MANIFEST}"):
        part.unlink(missing_ok=True)


def entry_of(shot: Shot, settings: dict, cut: Mapping[str, int]) -> dict:
    """Return the line of a video; cut: prompts of which only so many tokens are read."""
    cut_to = {"cut_to_tokens": cut[shot.prompt]} if shot.prompt in cut else {}
    known = {
        name: value
        for name, value in asdict(shot).items()
        if value or name not in ("image", "image_sha256")
    }
    return known | cut_to | {"settings": settings}


def append_entry(out: Path, rank: int, entry: dict) -> None:
    """Add a video to the rank's own part."""
    with (out / f".{rank}.{MANIFEST}").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
