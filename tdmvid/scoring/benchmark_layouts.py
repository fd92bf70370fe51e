"""Prompts of public benchmarks as they are distributed, and the folders that the benchmarks' own
scorers read.

| benchmark | prompts | files |
|---|---|---|
| hpdv2 | a folder of <style>.json, each a list | <style>/00000.jpg |
| drawbench | a list in .json, or a table with a column Prompts | 00000.jpg |
| coco | captions_val2014.json or alike | 000000000042.png, by image id |
| geneval | evaluation_metadata.jsonl | 00000/samples/00000.png, 00000/metadata.jsonl |
| t2v-compbench | a folder of 1_consistent_attr.txt and alike | consistent_attr/0001.mp4 |
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config.json_files import read_json
from ..data.prompts import read_prompts
from ..sampling.shots import Shot


@dataclass(frozen=True)
class Layout:
    """What to sample, and what else the scorer wants to find: file name -> text."""

    shots: list[Shot]
    texts: dict[str, str] = field(default_factory=dict)


def layout(benchmark: str, path: Path, *, seeds: int = 1) -> Layout:
    """Return the shots of a benchmark.

    Raises:
        ValueError: for files that are not in its layout, or for more seeds than its scorer takes.
    """
    if benchmark not in LAYOUTS:
        raise ValueError(f"benchmark {benchmark!r}: choose one of {', '.join(LAYOUTS)}")
    if seeds < 1 or (seeds > 1 and benchmark != "geneval"):
        raise ValueError(
            f"seeds={seeds}: the scorer of {benchmark} reads "
            + ("at least one image" if benchmark == "geneval" else "one file")
            + " for every prompt"
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist: give the benchmark's own prompts")
    found = LAYOUTS[benchmark](path, seeds)
    return Layout(_own_noise(found.shots, seeds), found.texts)


def _own_noise(shots: list[Shot], seeds: int) -> list[Shot]:
    """Give a prompt that comes again its next seeds: COCO's images share captions, and their
    pictures would be the same.
    """
    times: Counter[tuple[str, int]] = Counter()
    out = []
    for shot in shots:
        out.append(replace(shot, seed=shot.seed + seeds * times[shot.prompt, shot.seed]))
        times[shot.prompt, shot.seed] += 1
    return out


def _hpdv2(folder: Path, _: int) -> Layout:
    files = _sorted(folder, "*.json", "HPD v2 has a .json for every style")
    # The scorer asks for .jpg by name; the samples are lossless PNG inside, which it reads as well.
    return Layout(
        [
            Shot(prompt, 0, f"{file.stem}/{i:05d}.jpg")
            for file in files
            for i, prompt in enumerate(_list(file))
        ]
    )


def _drawbench(path: Path, _: int) -> Layout:
    prompts = _list(path) if path.suffix == ".json" else read_prompts(path, column="Prompts")
    return Layout([Shot(prompt, 0, f"{i:05d}.jpg") for i, prompt in enumerate(prompts)])


def _coco(path: Path, _: int) -> Layout:
    """One caption an image, the one with the lowest id: FID wants as many samples as images."""
    captions: dict[int, tuple[int, str]] = {}
    try:
        for row in read_json(path)["annotations"]:
            captions[row["image_id"]] = min(
                captions.get(row["image_id"], (row["id"], row["caption"])),
                (row["id"], row["caption"]),
            )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not COCO's captions ({error!r}): each of its annotations has image_id, id and"
            " caption"
        ) from None
    return Layout(
        [Shot(captions[image][1].strip(), 0, f"{image:012d}.png") for image in sorted(captions)]
    )


def _geneval(path: Path, seeds: int) -> Layout:
    shots, texts = [], {}
    for index, line in enumerate(
        line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()
    ):
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or "tag" not in row:
            raise ValueError(
                f"{path}, prompt {index}: {line[:80]!r} has no prompt and tag: give GenEval's"
                " evaluation_metadata.jsonl"
            )
        texts[f"{index:05d}/metadata.jsonl"] = line.strip() + "\n"
        shots += [
            Shot(row["prompt"], seed, f"{index:05d}/samples/{seed:05d}.png")
            for seed in range(seeds)
        ]
    return Layout(shots, texts)


def _compbench(folder: Path, _: int) -> Layout:
    files = _sorted(folder, "*.txt", "T2V-CompBench has a .txt for every category")
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


def _sorted(folder: Path, pattern: str, rule: str) -> list[Path]:
    files = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} is no folder with {pattern}: {rule}")
    return files


def _list(path: Path) -> list[str]:
    prompts = read_json(path)
    if not isinstance(prompts, list) or not all(
        isinstance(prompt, str) and prompt.strip() for prompt in prompts
    ):
        raise ValueError(f"{path}: must be a JSON list of prompts")
    return prompts
