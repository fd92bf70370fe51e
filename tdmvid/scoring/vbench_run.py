"""VBench of a student beside its teacher: sample, score with the real package, compare prompt by
prompt; see `tdmvid score vbench`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..config import VBenchConfig, to_dict
from ..data.files import write_json
from ..parallel import launch
from .paired_samples import NAMES, check_sides, config_mismatches, sample_metadata, sample_sides
from .preflight import Preflight
from .results import Pair, Result, write_result
from .vbench_runner import Environment, find_environment, ready, score_folder
from .vbench_scores import DIMENSIONS, Bootstrap, Scores
from .vbench_suite import Entry, check_videos, files_of, load_suite, shots_of

Stage = Literal["all", "sample", "score"]


@dataclass(frozen=True)
class Evaluation:
    """A run of VBench that can start: its settings, its prompts, and the dimensions whose files are
    there.
    """

    config: VBenchConfig
    entries: list[Entry]
    checked: Preflight

    @property
    def environment(self) -> Environment:
        """Return the Python environment that holds the package."""
        return find_environment(self.config)

    def describe(self) -> str:
        """Return how much is sampled and scored, in a few words."""
        shots = shots_of(self.entries, self.config.video.frames)
        dimensions = len(self.checked.ready)
        return (
            f"{len({entry.prompt for entry in self.entries}):,} prompts, {len(shots):,} videos of"
            f" student and of teacher each, {dimensions} dimension{'s' * (dimensions != 1)}"
        )


def prepare(config: VBenchConfig) -> Evaluation:
    """Read the suite and check which of its dimensions can be scored."""
    entries = load_suite(config, find_environment(config).full_info)
    return Evaluation(config, entries, ready(config, entries))


def run(evaluation: Evaluation, student: Path, out: Path, *, stage: Stage = "all") -> None:
    """Sample both sides into `out`, score them and write the results, on any number of ranks.

    Raises:
        ValueError: if nothing can be scored, or `out` holds other videos.
        RuntimeError: names the dimensions whose worker crashed.
    """
    if not evaluation.checked.ready and stage != "sample":
        print(evaluation.checked.describe())
        raise ValueError(
            "no dimension can be scored: the files that are missing are listed above, --download"
            " fetches them"
        )
    if stage == "score":
        if not int(os.environ.get("RANK", "0")):  # the first process scores, on every GPU
            score_and_compare(evaluation, student, out)
        return
    # Ranks wait for the slowest one's last video.
    world = launch.start("auto", timeout_minutes=24 * 60)
    if world.primary:
        print(evaluation.checked.describe(), flush=True)
    shots = shots_of(evaluation.entries, evaluation.config.video.frames)
    sample_sides(out, shots, evaluation.config, student, world)
    torch.cuda.empty_cache()
    if stage == "sample":
        launch.finish()
    elif launch.on_one_machine(world):
        launch.finish()  # the GPUs are the workers' now
        if world.primary:
            score_and_compare(evaluation, student, out)
    else:  # the launcher of a machine whose ranks leave could end those of the first
        with launch.first_alone():
            if world.primary:
                score_and_compare(evaluation, student, out)
        launch.finish()


def score_and_compare(evaluation: Evaluation, student: Path, out: Path) -> None:
    """Score the videos of both sides in `out` and write the results."""
    config, entries, checked = evaluation.config, evaluation.entries, evaluation.checked
    check_sides(out, config, student)
    write_json(out / "config.json", to_dict(config))
    scores = score(out, config, entries, checked)
    page = compare(out, config, entries, checked, scores, said=config_mismatches(config, student))
    print(f"results: {page}")


def score(
    out: Path, config: VBenchConfig, entries: list[Entry], checked: Preflight
) -> dict[str, Scores]:
    """Score the videos of both samplers, on every GPU that is there."""
    files, devices = [shot.file for shot in shots_of(entries, config.video.frames)], _devices()
    digests = {name: check_videos(out / name, files, config.video) for name in NAMES}
    scores: dict[str, Scores] = {}
    for name in NAMES:
        scores[name] = score_folder(
            out / name, out / "scoring" / name, config, entries, checked, digests[name], devices
        )
        print(f"{name}: {', '.join(checked.ready)} scored on {len(files)} videos")
    return scores


def _devices() -> list[str]:
    """Return the numbers of the GPUs that this process sees, by those of the machine; or "cpu"."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [
        visible[index] if index < len(visible) and visible[index] else str(index)
        for index in range(torch.cuda.device_count())
    ] or ["cpu"]


def compare(
    out: Path,
    config: VBenchConfig,
    entries: list[Entry],
    checked: Preflight,
    scores: dict[str, Scores],
    *,
    said: tuple[str, ...] = (),
) -> Path:
    """Write results.json, .md and .html.

    Args:
        said: what else a reader must know.

    Returns:
        The page.
    """
    prompts = {
        file: entry.prompt for entry in entries for file in files_of(entry, config.video.frames)
    }
    bootstrap = Bootstrap(prompts, _dimensions(entries))
    student, teacher = (scores[name] for name in NAMES)
    warnings = notes(config, checked)
    ours, theirs = bootstrap.measures(student), bootstrap.measures(teacher)
    gains = bootstrap.differences(student, teacher)
    if warnings:  # the totals of part of the suite look like those of the whole
        ours, theirs, gains = (
            {name: side[name] for name in side if name in DIMENSIONS}
            for side in (ours, theirs, gains)
        )
    result = Result(
        title=f"VBench{'-Long' if config.long else ''}: {out.resolve().parent.name}",
        protocol=protocol(config, entries),
        notes=(*warnings, *gaps(student, teacher, gains), *said),
        names=NAMES,
        scores=(ours, theirs),
        differences=gains,
        facts=sample_metadata(out)
        | {
            "config": to_dict(config),
            "videos_scored": {name: [len(student[name]), len(teacher[name])] for name in student},
            "left_out": {
                name: [need.path for need in needs] for name, needs in checked.missing.items()
            },
        },
    )
    page = write_result(out, result, _pairs(out, prompts, student, teacher), shown=config.pairs)
    print((out / "results.md").read_text())
    return page


def _dimensions(entries: list[Entry]) -> dict[str, frozenset[str]]:
    """Return what each prompt is scored on; a prompt may come twice."""
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        found[entry.prompt] = found.get(entry.prompt, frozenset()) | set(entry.dimensions)
    return found


def protocol(config: VBenchConfig, entries: list[Entry]) -> str:
    """Return how the figures came about, in a sentence or two."""
    suite = config.prompts if config.custom else "VBench's suite"
    shown = f", sampled from {config.augmented}" if config.augmented else ""
    size = config.video
    return (
        f"{len({entry.prompt for entry in entries})} prompts of {suite}{shown}, {config.seeds}"
        f" seeds each, the same noise for both; {size.frames} frames of {size.height} x"
        f" {size.width} at {size.fps} fps; teacher in {config.teacher.steps} steps with guidance"
        f" {config.teacher.guidance}; vbench 0.1.5{', VBench-Long' if config.long else ''}; 95 %"
        " bootstrap intervals over prompts, the difference paired."
    )


def notes(config: VBenchConfig, checked: Preflight) -> tuple[str, ...]:
    """Return what keeps these figures from being comparable with others'; nothing for a whole run
    of VBench's protocol.
    """
    out = []
    lacking = [name for name in DIMENSIONS if name not in checked.ready]
    if lacking:
        out.append(
            f"Partial: {len(checked.ready)} of {len(DIMENSIONS)} dimensions. Not scored:"
            f" {', '.join(lacking)}."
        )
    if config.custom:
        out.append("Prompts of our own: not comparable with published VBench figures.")
    if config.limit:
        out.append(f"Only the first {config.limit} prompts of each group of dimensions.")
    if not config.custom and (config.seeds < 5 or config.static_seeds < 25):
        out.append(
            f"{config.seeds} videos a prompt, {config.static_seeds} for the static filter: VBench's"
            " protocol has 5 and 25."
        )
    if not config.custom and not config.static_filter and "temporal_flickering" in checked.ready:
        out.append("temporal_flickering is of unfiltered videos, unlike VBench's protocol.")
    return (*out, "So there is no total.") if out else ()


def gaps(student: Scores, teacher: Scores, compared: Collection[str]) -> tuple[str, ...]:
    """Return why a dimension that was scored has no figure or no difference: the package leaves out
    videos that move, or lack the object.
    """
    out = []
    for name in student:
        empty = [
            side for side, scores in zip(NAMES, (student, teacher), strict=True) if not scores[name]
        ]
        if empty:
            out.append(
                f"{name}: no video of the {' or the '.join(empty)} is static, as its filter wants:"
                " no score of it, no difference, no total."
            )
        elif name not in compared:
            out.append(
                f"{name}: of no prompt could videos of both be scored: no difference, and none of"
                " totals."
            )
    return tuple(out)


def _pairs(out: Path, prompts: dict[str, str], student: Scores, teacher: Scores) -> list[Pair]:
    """Return a pair for every prompt, of its first seed; the gain is the mean normalised one over
    its dimensions and seeds.
    """
    gains: dict[str, list[float]] = {}
    for name, videos in student.items():
        for file in videos.keys() & teacher[name].keys():
            scale = DIMENSIONS[name].high - DIMENSIONS[name].low
            gains.setdefault(prompts[file], []).append((videos[file] - teacher[name][file]) / scale)
    first = {prompt: file for file, prompt in reversed(prompts.items())}
    return [
        Pair(
            prompt,
            sum(gain) / len(gain),
            (out / NAMES[0] / first[prompt], out / NAMES[1] / first[prompt]),
        )
        for prompt, gain in gains.items()
    ]
