"""Record a folder of samples: its settings, and one manifest line per finished video.

Each rank writes a manifest file of its own, because ranks on several machines cannot append to one
file. The first rank merges them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from ..config.json_files import read_object
from ..data.files import short, write_json, write_text
from ..data.items import MANIFEST
from ..data.media import file_inside, is_whole
from .shots import Shot

SETTINGS = "sampling.json"
"""File with the settings that all samples of a folder share."""
UNFINISHED = ".unfinished"
"""Empty file in a folder whose samples are being made, or whose sampling was stopped."""


def claim_folder(out: Path, settings: dict, shots: list[Shot]) -> set[str]:
    """Reserve a folder for samples with these settings.

    Args:
        out: The folder.
        settings: Settings of all samples, written to sampling.json.
        shots: The samples to make.

    Returns:
        Names of files that exist already and are complete.

    Raises:
        ValueError: The folder has samples with other settings, or a file made from another prompt,
            seed or image.
    """
    path = out / SETTINGS
    if path.is_file() and read_manifest(out):
        there = read_object(path)
        for key in sorted((there.keys() | settings.keys()) - {"student"}):
            if differs := next(_differences(key, there.get(key), settings.get(key)), None):
                name, old, new = differs
                raise ValueError(
                    f"{out} contains videos with {name}={_told(old)}, but these have {_told(new)}:"
                    " use the same value, or another --out"
                )
    wanted = {shot.file: shot for shot in shots}
    for entry in read_manifest(out):
        shot = wanted.get(entry["file"])
        if shot and (shot.prompt, shot.seed) != (entry.get("prompt"), entry.get("seed")):
            raise ValueError(
                f"{out / shot.file} was made from {entry.get('prompt')!r} with seed"
                f" {entry.get('seed')}, not {shot.prompt!r} with seed {shot.seed}: use the same"
                " prompts and seeds, or another --out"
            )
        if shot and shot.image_sha256 != entry.get("image_sha256", ""):
            raise ValueError(
                f"{out / shot.file} was made from an image other than {_told(shot.image)}: use the"
                " same image, or another --out"
            )
    write_json(path, settings)
    gather_manifest(out)
    size = {name: settings["video"][name] for name in ("frames", "height", "width")}
    listed = {entry["file"] for entry in read_manifest(out)}
    done = {file for file in wanted if file in listed and _made(out, file, size)}
    if len(done) < len(wanted):
        (out / UNFINISHED).touch()
    return done


def finish_folder(out: Path, made: Iterable[dict]) -> None:
    """Record that all samples of a call are made.

    Args:
        out: The folder of samples.
        made: Manifest entries of the call's samples.
    """
    gather_manifest(out, made)
    (out / UNFINISHED).unlink(missing_ok=True)


def check_finished(out: Path) -> None:
    """Check that the sampling of a folder, if it was sampled here, came to its end.

    Args:
        out: A folder of samples; one without sampling.json is accepted.

    Raises:
        ValueError: It was stopped, or has not ended yet.
    """
    ended = (out / MANIFEST).is_file() and not (out / UNFINISHED).exists()
    if (out / SETTINGS).is_file() and not ended:
        raise ValueError(
            f"{out} is incomplete, because its sampling has not finished: repeat its command"
        )


@contextmanager
def describing_interrupt(out: Path, shots: Sequence[Shot]) -> Iterator[None]:
    """Let an interrupt of the block say how many samples there are.

    Args:
        out: The folder of samples.
        shots: The samples to make.

    Raises:
        KeyboardInterrupt: The block was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        listed = {entry["file"] for entry in read_manifest(out)}
        count = sum(shot.file in listed and (out / shot.file).is_file() for shot in shots)
        raise KeyboardInterrupt(
            f"interrupted: {count} of {len(shots)} samples are in {out}; the same command continues"
        ) from None


def check_names(out: Path, shots: Sequence[Shot]) -> None:
    """Check that no shot is in the folder under another name, because the folder would then count
    it twice.

    Args:
        out: The folder.
        shots: The samples to make.

    Raises:
        ValueError: A shot would be sampled again, because its prompt has moved in the list, or the
            files are named in another way.
    """
    there = read_manifest(out)
    listed = {entry["file"] for entry in there}
    missing = {given_of(asdict(shot)): shot for shot in shots if shot.file not in listed}
    for entry in there:
        shot = missing.get(given_of(entry))
        if shot and (out / entry["file"]).is_file():
            raise ValueError(
                f"{out / entry['file']} shows {short(shot.prompt)} with seed {shot.seed}, which"
                f" would be sampled again as {shot.file}: keep the order of the prompts and add new"
                " ones at the end, keep --names, or use another --out"
            )


def count_others(out: Path, shots: Sequence[Shot]) -> int:
    """Count the finished samples of earlier calls that are not among these shots.

    Args:
        out: The folder.
        shots: The samples of this call.
    """
    own = {shot.file for shot in shots}
    entries = (entry for entry in read_manifest(out) if entry["file"] not in own)
    return sum((out / entry["file"]).is_file() for entry in entries)


def given_of(entry: Mapping[str, object]) -> tuple[str, int, str] | None:
    """Return the prompt, the seed and the digest of the image that a sample was made from.

    Args:
        entry: Entry of a manifest.

    Returns:
        What determines the sample in its folder, with "" for no image; None if the entry lacks it.
    """
    prompt, seed = entry.get("prompt"), entry.get("seed")
    image = entry.get("image_sha256", "")
    if isinstance(prompt, str) and isinstance(seed, int) and isinstance(image, str):
        return prompt, seed, image
    return None


def _made(out: Path, file: str, size: dict[str, int]) -> bool:
    """Return whether a sample exists in the folder and can be decoded to its end."""
    try:
        path = file_inside(out, file)
    except ValueError:  # a link that leaves the folder
        return False
    return path.is_file() and is_whole(path, **size)


def _differences(name: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    """Yield the dotted name and both values of settings that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def _told(value: object) -> str:
    """Format a value for a message; long texts, such as negative prompts, are shortened."""
    return short(value) if isinstance(value, str) else repr(value)


def read_manifest(out: Path) -> list[dict]:
    """Read the entries of all finished videos: prompt, seed, file and settings of each.

    Incomplete lines, as a killed rank leaves them, are ignored.

    Args:
        out: The folder of samples.

    Returns:
        Entries sorted by file name.
    """
    entries = {}
    for path in [out / MANIFEST, *sorted(out.glob(f".*.{MANIFEST}"))]:
        try:
            # splitlines() would also split at U+2028 inside a prompt.
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:  # missing, or just merged by another job
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
    """Merge the ranks' manifests into one.

    If two jobs merge in one folder at the same time, lines may be lost.

    Args:
        out: The folder of samples.
        made: Entries to include even if no manifest has them.
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
    """Return the manifest entry of a video.

    Args:
        shot: The video.
        settings: Settings of all samples.
        cut: Truncated prompt -> number of tokens that are read.
    """
    cut_to = {"cut_to_tokens": cut[shot.prompt]} if shot.prompt in cut else {}
    known = {
        name: value
        for name, value in asdict(shot).items()
        if value or name not in ("image", "image_sha256")
    }
    return known | cut_to | {"settings": settings}


def append_entry(out: Path, rank: int, entry: dict) -> None:
    """Append an entry to the manifest of this rank."""
    with (out / f".{rank}.{MANIFEST}").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
