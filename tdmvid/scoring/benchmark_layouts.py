"""Read the prompts of public benchmarks in their original format, and name files as their scorers
expect.

| benchmark | prompts | files |
|---|---|---|
| hpdv2 | a folder of <style>.json, each a list | <style>/00000.jpg |
| drawbench | a list in .json, or a table with a column Prompts | 00000.jpg |
| coco | captions_val2014.json or similar | 000000000042.png, by image id |
| geneval | evaluation_metadata.jsonl | 00000/samples/00000.png, 00000/metadata.jsonl |
| t2v-compbench | a folder of 1_consistent_attr.txt and similar | consistent_attr/0001.mp4 |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import short
from ..config.json_files import parse_line, read_json
from ..data.files import check_names
from ..data.prompt_text import check_text, is_empty, text_lines
from ..data.prompts import read_prompts
from ..sampling.shots import Shot


@dataclass(frozen=True)
class Layout:
    """Samples to make, and text files that the scorer needs, by file name."""

    shots: list[Shot]
    texts: dict[str, str] = field(default_factory=dict)


def layout(benchmark: str, path: Path, *, seeds: int = 1) -> Layout:
    """Return the samples of a benchmark.

    Args:
        benchmark: Key of `LAYOUTS`.
        path: File or folder with the benchmark's prompts.
        seeds: Samples per prompt.

    Returns:
        Samples with their file names, and further files.

    Raises:
        ValueError: The files do not have the benchmark's format, or its scorer takes fewer seeds.
    """
    if benchmark not in LAYOUTS:
        raise ValueError(f"benchmark {benchmark!r}: choose one of {', '.join(LAYOUTS)}")
    if seeds < 1 or (seeds > 1 and benchmark != "geneval"):
        raise ValueError(
            f"seeds={seeds}: the scorer of {benchmark} needs "
            + ("at least one image" if benchmark == "geneval" else "exactly one file")
            + " per prompt"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the path of the benchmark's prompts")
    found = LAYOUTS[benchmark](path, seeds)
    return Layout(_own_noise(found.shots, seeds), found.texts)


def _own_noise(shots: list[Shot], seeds: int) -> list[Shot]:
    """Give repeated prompts different seeds. Images of COCO share captions, and equal seeds would
    give equal samples.
    """
    times: Counter[tuple[str, int]] = Counter()
    out = []
    for shot in shots:
        out.append(replace(shot, seed=shot.seed + seeds * times[shot.prompt, shot.seed]))
        times[shot.prompt, shot.seed] += 1
    return out


def _hpdv2(folder: Path, _: int) -> Layout:
    files = _sorted(folder, "*.json", "HPD v2 has one .json file per style")
    # The scorer expects the name .jpg. The files contain lossless PNG, which it reads as well.
    return Layout(
        [
            Shot(prompt, 0, f"{file.stem}/{i:05d}.jpg")
            for file in files
            for i, prompt in enumerate(_list(file))
        ]
    )


def _drawbench(path: Path, _: int) -> Layout:
    prompts = (
        _list(path) if path.suffix == ".json" else read_prompts(path, column="Prompts", setting="")
    )
    return Layout([Shot(prompt, 0, f"{i:05d}.jpg") for i, prompt in enumerate(prompts)])


def _coco(path: Path, _: int) -> Layout:
    """Return one caption per image, the one with the lowest id, because FID needs as many samples
    as images.
    """
    data = read_json(path)
    rows = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(
            f"{path}: not a COCO caption file: its object must have a list of annotations, each"
            " with image_id, id and caption"
        )
    captions: dict[int, tuple[int, str]] = {}
    for number, row in enumerate(rows, 1):
        image, own, caption = _annotation(row, f"{path}, annotation {number}")
        captions[image] = min(captions.get(image, (own, caption)), (own, caption))
    return Layout([Shot(captions[image][1], 0, f"{image:012d}.png") for image in sorted(captions)])


def _annotation(row: Any, where: str) -> tuple[int, int, str]:
    """Return image_id, id and caption of an annotation of COCO."""
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: {short(row)} is not an object with image_id, id and caption: give COCO's"
            " caption file"
        )
    for name in ("image_id", "id"):
        value = row.get(name)
        if type(value) is not int or not 0 <= value < 10**12:
            raise ValueError(
                f"{where}: {name}={short(value)} must be a whole number of at most 12 digits: give"
                " COCO's caption file"
            )
    return row["image_id"], row["id"], _prompt(row.get("caption"), where).strip()


def _geneval(path: Path, seeds: int) -> Layout:
    shots, texts = [], {}
    for index, (number, line) in enumerate(text_lines(path)):
        where = f"{path}, line {number}"
        row = parse_line(line, where, remedy="give GenEval's evaluation_metadata.jsonl")
        if not isinstance(row, dict) or "prompt" not in row or "tag" not in row:
            raise ValueError(
                f"{where}: {short(line)} has no prompt and tag: give GenEval's"
                " evaluation_metadata.jsonl"
            )
        prompt = _prompt(row["prompt"], where)
        texts[f"{index:05d}/metadata.jsonl"] = line + "\n"
        shots += [
            Shot(prompt, seed, f"{index:05d}/samples/{seed:05d}.png") for seed in range(seeds)
        ]
    if not shots:
        raise ValueError(f"{path} has no prompts: give GenEval's evaluation_metadata.jsonl")
    return Layout(shots, texts)


def _compbench(folder: Path, _: int) -> Layout:
    files = _sorted(folder, "*.txt", "T2V-CompBench has one .txt file per category")
    names = {file: re.sub(r"^\d+_", "", file.stem) for file in files}
    return Layout(
        [
            Shot(prompt, 0, f"{name}/{i:04d}.mp4")
            for file, name in names.items()
            for i, prompt in enumerate(read_prompts(file), 1)
        ]
    )


LAYOUTS: dict[str, Callable[[Path, int], Layout]] = {
    "hpdv2": _hpdv2,
    "drawbench": _drawbench,
    "coco": _coco,
    "geneval": _geneval,
    "t2v-compbench": _compbench,
}
"""Readers of the benchmarks' prompts, by benchmark."""


def _sorted(folder: Path, pattern: str, rule: str) -> list[Path]:
    files = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} is not a folder with {pattern} files: {rule}")
    check_names(folder, files)
    return files


def _list(path: Path) -> list[str]:
    prompts = read_json(path)
    if not isinstance(prompts, list):
        raise ValueError(f"{path}: must be a JSON list of prompts")
    return [_prompt(value, f"{path}, prompt {number}") for number, value in enumerate(prompts, 1)]


def _prompt(value: Any, where: str) -> str:
    """Check a prompt, and return it as it is: the noise of a sample depends on every character, and
    a published list is not edited.
    """
    text = check_text(value, where)
    if is_empty(text):
        raise ValueError(f"{where}: the prompt {short(text)} is empty: fill or remove it")
    return text
