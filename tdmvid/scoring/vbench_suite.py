"""The contents of a VBench run: its prompts, and the videos that must exist.

Files are named `{prompt}-{seed}.mp4` by the ORIGINAL prompt, which is used for scoring. If there is
an augmented prompt, the model sees that one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from ..config import ClipSize, VBenchConfig
from ..config.json_files import read_json
from ..data.files import short
from ..data.items import Item
from ..data.prompts import read_prompts
from ..sampling.shots import NAME_BYTES, Shot, names_file, plan_shots
from .vbench_images import own_rows, suite_rows
from .vbench_scores import SUITES, check_dimensions

CLIP = "_full"
"""Longest text that VBench-Long adds to the name of a video to name its clips."""


@dataclass(frozen=True)
class Entry:
    """A prompt of the suite, its dimensions, and the text that the model sees."""

    prompt: str
    dimensions: tuple[str, ...]
    shown: str
    seeds: int
    auxiliary: dict = field(default_factory=dict)
    image: str = ""
    """File of the first frame; only for VBench-I2V."""


def load_suite(config: VBenchConfig, full_info: Path | None = None) -> list[Entry]:
    """Return the prompts of a run.

    Args:
        config: Settings of the evaluation.
        full_info: VBench's list of prompts from its environment. Not needed for custom prompts.

    Returns:
        The prompts with their dimensions.

    Raises:
        ValueError: A dimension or the prompts cannot be used.
    """
    suite = SUITES[config.suite]
    names = list(config.dimensions) or [
        name
        for name, dimension in suite.dimensions.items()
        if dimension.custom or not config.custom
    ]
    check_dimensions(names, custom=config.custom, suite=suite)
    rows = _rows(config, names, full_info)
    shown = (
        read_prompts(Path(config.augmented))
        if config.augmented
        else [row["prompt_en"] for row in rows]
    )
    if len(shown) != len(rows):
        raise ValueError(
            f"{config.augmented} has {len(shown)} prompts, but the suite has {len(rows)}: line i"
            " must be the augmented version of the suite's prompt i"
        )
    entries: list[Entry] = []
    taken: Counter[tuple[str, ...]] = Counter()
    for row, text in zip(rows, shown, strict=True):
        wanted = tuple(name for name in row["dimension"] if name in names)
        taken[wanted] += 1
        if wanted and not (config.limit and taken[wanted] > config.limit):
            seeds = (
                config.static_seeds
                if config.filtered and "temporal_flickering" in wanted
                else config.seeds
            )
            auxiliary, image = row.get("auxiliary_info") or {}, row.get("image", "")
            entries.append(Entry(row["prompt_en"], wanted, text, seeds, auxiliary, image))
    _check_shown(config, entries)
    _check_names(config, entries)
    return entries


def _rows(config: VBenchConfig, names: list[str], full_info: Path | None) -> list[dict]:
    """Return the prompts in the format of VBench's list."""
    if config.suite == "i2v":
        return own_rows(config, names) if config.custom else suite_rows(config)
    return _own_rows(config, names) if config.custom else _suite_rows(config, full_info)


def _own_rows(config: VBenchConfig, names: list[str]) -> list[dict]:
    """Return custom prompts in the format of VBench's list."""
    prompts = list(dict.fromkeys(read_prompts(Path(config.prompts))))
    if config.long and any("_" in prompt for prompt in prompts):
        raise ValueError(
            f"{config.prompts}: VBench-Long cuts prompts at an underscore: remove underscores from"
            " the prompts"
        )
    return [{"prompt_en": prompt, "dimension": names} for prompt in prompts]


def _suite_rows(config: VBenchConfig, full_info: Path | None) -> list[dict]:
    """Return VBench's own list of prompts."""
    if full_info is None or not full_info.is_file():
        raise ValueError(
            f"environment={config.environment!r} has no list of VBench's prompts: run"
            " eval/setup_vbench.sh, or set prompts to a file of your own prompts"
        )
    rows: list[dict] = read_json(full_info)
    return rows


def _check_shown(config: VBenchConfig, entries: list[Entry]) -> None:
    """Raise ValueError if the model sees the same text for two prompts, because their videos would
    be equal.
    """
    first: dict[tuple[str, str], str] = {}
    inputs = {entry.prompt: (entry.shown, entry.image) for entry in reversed(entries)}
    for prompt, given in inputs.items():
        if first.setdefault(given, prompt) != prompt:
            both = f"{given[0]!r} is used for {first[given]!r} and for {prompt!r}"
            raise ValueError(
                f"{config.augmented}: {both}, so their videos would be the same: change one of the"
                " texts"
            )


def _check_names(config: VBenchConfig, entries: list[Entry]) -> None:
    """Raise ValueError if a custom prompt cannot name its videos, from which VBench reads it."""
    most = NAME_BYTES - len(CLIP) * config.long
    for entry in entries if config.custom else ():
        if not names_file(f"{entry.prompt}-{entry.seeds - 1}.mp4", most):
            raise ValueError(
                f"prompts={short(config.prompts)}: {short(entry.prompt)} cannot be a file name (no"
                f" '/', at most {most} bytes with the seed), but VBench reads prompts from file"
                " names: write a short prompt in its place, and the long text as the same line of a"
                " file `augmented`"
            )


def shots_of(entries: list[Entry], frames: int) -> list[Shot]:
    """Return every video of the suite once, named by the original prompt.

    Args:
        entries: Prompts of the suite.
        frames: Frames per video.

    Returns:
        Samples to make, with the text and the image that the model sees.
    """
    shown = {
        entry.prompt: entry.shown for entry in reversed(entries)
    }  # a prompt that occurs twice is sampled with its first text
    images = {entry.prompt: Path(entry.image) if entry.image else None for entry in entries}
    seeds: Counter[str] = Counter()
    for entry in entries:
        seeds[entry.prompt] = max(seeds[entry.prompt], entry.seeds)
    return [
        replace(shot, prompt=shown[prompt])
        for prompt, count in seeds.items()
        for shot in plan_shots(
            [Item(prompt, images[prompt])], range(count), frames=frames, naming="prompt"
        )
    ]


def files_of(entry: Entry, frames: int) -> list[str]:
    """Return the file names of an entry's videos.

    Args:
        entry: A prompt of the suite.
        frames: Frames per video.

    Returns:
        One name per seed.
    """
    return [
        shot.file
        for shot in plan_shots([entry.prompt], range(entry.seeds), frames=frames, naming="prompt")
    ]


def check_videos(folder: Path, files: list[str], size: ClipSize) -> dict[str, str]:
    """Check videos and return a digest of every file.

    Args:
        folder: Folder of the videos.
        files: File names.
        size: Expected frames, size and frame rate.

    Returns:
        Digests by file name.

    Raises:
        ValueError: A video is missing, has another size, length or frame rate, or equals another.
    """
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(files)} videos are missing, the first is"
            f" {missing[0]!r}: sample again, which makes the missing ones"
        )
    digests: dict[str, str] = {}
    for file in files:
        if size.frames > 1:
            _check_clip(folder / file, size)
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()[:24]
        if digest in digests:
            raise ValueError(
                f"{folder}: {file!r} is the same video as {digests[digest]!r}, but every seed and"
                " prompt must have its own noise: remove one of them"
            )
        digests[digest] = file
    return {file: digest for digest, file in digests.items()}


def _check_clip(path: Path, size: ClipSize) -> None:
    import av

    try:
        with av.open(str(path.absolute())) as container:
            stream = container.streams.video[0]
            found = (stream.frames, stream.height, stream.width, Fraction(stream.average_rate or 0))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(
            f"{path}: not a readable video ({error}): remove it and sample again"
        ) from error
    # write_video rounds odd heights and widths up.
    height, width = (side + side % 2 for side in (size.height, size.width))
    wanted = (size.frames, height, width, Fraction(size.fps))
    if found != wanted:
        shape = "{} frames of {} x {} at {} fps"
        raise ValueError(
            f"{path} has {shape.format(*found)}, but the evaluation uses {shape.format(*wanted)}:"
            " remove it and sample again, or correct video in the config"
        )
