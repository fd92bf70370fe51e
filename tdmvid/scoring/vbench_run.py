"""VBench for a student and its teacher: sample both, score them with the VBench package, compare
them prompt by prompt. See `tdmvid score vbench`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ..config import VBenchConfig, to_dict
from ..data.files import check_writable, write_json
from ..parallel import collectives, launch
from .paired_samples import NAMES, check_sides, config_mismatches, sample_metadata, sample_sides
from .preflight import Preflight
from .results import Pair, Result, write_result
from .vbench_images import ratio_of
from .vbench_runner import Environment, find_environment, ready, score_folder
from .vbench_scores import FACTS, SUITES, Bootstrap, Scores
from .vbench_suite import Entry, check_videos, files_of, load_suite, shots_of

Stage = Literal["all", "sample", "score"]


@dataclass(frozen=True)
class Evaluation:
    """A VBench run that is ready to start: its settings, its prompts, and the available
    dimensions.
    """

    config: VBenchConfig
    entries: list[Entry]
    checked: Preflight

    @property
    def environment(self) -> Environment:
        """Python environment with the VBench package."""
        return find_environment(self.config)

    def describe(self) -> str:
        """Describe how much is sampled and scored.

        Returns:
            Part of a sentence.
        """
        shots = shots_of(self.entries, self.config.video.frames)
        dimensions = len(self.checked.ready)
        return (
            f"{len({entry.prompt for entry in self.entries}):,} prompts, {len(shots):,} videos each"
            f" of student and teacher, {dimensions} dimension{'s' * (dimensions != 1)}"
        )


def prepare(config: VBenchConfig) -> Evaluation:
    """Read the prompts and check which dimensions can be scored.

    Args:
        config: Settings of the evaluation.

    Returns:
        The evaluation.
    """
    entries = load_suite(config, find_environment(config).full_info)
    return Evaluation(config, entries, ready(config, entries))


def run(evaluation: Evaluation, student: Path, out: Path, *, stage: Stage = "all") -> None:
    """Sample student and teacher, score them and write the results, on any number of ranks.

    Args:
        evaluation: The evaluation.
        student: Folder of the student.
        out: Folder to write to.
        stage: "sample" or "score" for one part, "all" for both.

    Raises:
        ValueError: No dimension can be scored, or `out` contains other videos.
        RuntimeError: Workers crashed. The message names their dimensions.
    """
    if not evaluation.checked.ready and stage != "sample":
        print(evaluation.checked.describe())
        raise ValueError(
            "no dimension can be scored: download the missing files that are listed above with"
            " --download"
        )
    if stage == "score":
        if not int(os.environ.get("RANK", "0")):  # the first process scores on all GPUs
            score_and_compare(evaluation, student, out)
        return
    check_writable(out, "--out")
    # Ranks wait until the slowest one has made its last video.
    world = launch.start("auto", timeout_minutes=24 * 60)
    if world.primary:
        print(evaluation.checked.describe(), flush=True)
    shots = shots_of(evaluation.entries, evaluation.config.video.frames)
    sample_sides(out, shots, evaluation.config, student, world)
    torch.cuda.empty_cache()
    if stage == "sample":
        launch.finish()
    elif launch.on_one_machine(world):
        launch.finish()  # leaves the GPUs to the workers
        if world.primary:
            score_and_compare(evaluation, student, out)
    else:  # if other machines' ranks exited, their launcher could stop the first machine's
        with collectives.first_alone():
            if world.primary:
                score_and_compare(evaluation, student, out)
        launch.finish()


def score_and_compare(evaluation: Evaluation, student: Path, out: Path) -> None:
    """Score the videos of student and teacher in `out` and write the results.

    Args:
        evaluation: The evaluation.
        student: Folder of the student.
        out: Folder with the videos of both, and for the results.
    """
    config, entries, checked = evaluation.config, evaluation.entries, evaluation.checked
    check_sides(out, config, student)
    write_json(out / "config.json", to_dict(config))
    scores = score(out, config, entries, checked)
    page = compare(out, config, entries, checked, scores, said=config_mismatches(config, student))
    print(f"results: {page}")


def score(
    out: Path, config: VBenchConfig, entries: list[Entry], checked: Preflight
) -> dict[str, Scores]:
    """Score the videos of student and teacher on all GPUs.

    Args:
        out: Folder with the videos of both.
        config: Settings of the evaluation.
        entries: Prompts of the suite.
        checked: Available dimensions.

    Returns:
        Scores of "student" and "teacher", by dimension and file.
    """
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
    """Return the machine's numbers of the GPUs that are visible to this process, or "cpu"."""
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
    """Write results.json, results.md and results.html.

    Args:
        out: Folder with the videos of both, and for the results.
        config: Settings of the evaluation.
        entries: Prompts of the suite.
        checked: Available dimensions.
        scores: Scores of "student" and "teacher", by dimension and file.
        said: Further notes for the reader.

    Returns:
        The page.
    """
    prompts = {
        file: entry.prompt for entry in entries for file in files_of(entry, config.video.frames)
    }
    suite = SUITES[config.suite]
    bootstrap = Bootstrap(prompts, _dimensions(entries), suite)
    student, teacher = (scores[name] for name in NAMES)
    warnings = notes(config, checked)
    ours, theirs = bootstrap.measures(student), bootstrap.measures(teacher)
    gains = bootstrap.differences(student, teacher)
    if warnings:  # totals of a part of the suite could be mistaken for VBench totals
        ours, theirs, gains = (
            {name: side[name] for name in side if name in suite.dimensions}
            for side in (ours, theirs, gains)
        )
    result = Result(
        title=f"{suite.name}{'-Long' * config.long}: {out.resolve().parent.name}",
        protocol=protocol(config, entries),
        notes=(*warnings, *gaps(student, teacher, gains), *said),
        names=NAMES,
        scores=(ours, theirs),
        differences=gains,
        facts=sample_metadata(out, shots_of(entries, config.video.frames))
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
    """Return the dimensions that each prompt is scored on. A prompt may occur twice."""
    found: dict[str, frozenset[str]] = {}
    for entry in entries:
        found[entry.prompt] = found.get(entry.prompt, frozenset()) | set(entry.dimensions)
    return found


def protocol(config: VBenchConfig, entries: list[Entry]) -> str:
    """Describe how the results were obtained.

    Args:
        config: Settings of the evaluation.
        entries: Prompts of the suite.

    Returns:
        A sentence or two.
    """
    name = SUITES[config.suite].name
    suite = config.prompts if config.custom else f"{name}'s suite"
    shown = f", sampled from {config.augmented}" if config.augmented else ""
    if config.suite == "i2v" and not config.custom:
        shown += f", with its images cropped to {ratio_of(config.video)}"
    size = config.video
    return (
        f"{len({entry.prompt for entry in entries})} prompts of {suite}{shown}, {config.seeds}"
        f" seeds each, the same noise for both; {size.frames} frames of {size.height} x"
        f" {size.width} at {size.fps} fps; teacher in {config.teacher.steps} steps with guidance"
        f" {config.teacher.guidance}; vbench 0.1.5"
        f"{f', {name}' * (config.suite == 'i2v')}{', VBench-Long' * config.long}; 95 %"
        " bootstrap intervals over prompts, the difference paired."
    )


def notes(config: VBenchConfig, checked: Preflight) -> tuple[str, ...]:
    """Return why the results are not comparable with published ones.

    Args:
        config: Settings of the evaluation.
        checked: Available dimensions.

    Returns:
        Sentences; empty for a complete run of VBench's protocol.
    """
    out, counted = [], SUITES[config.suite].counted
    lacking = [name for name in counted if name not in checked.ready]
    if lacking:
        out.append(
            f"Partial: {len(counted) - len(lacking)} of {len(counted)} dimensions. Not scored:"
            f" {', '.join(lacking)}."
        )
    if config.custom:
        out.append("Custom prompts: not comparable with published VBench results.")
    if config.limit:
        out.append(f"Only the first {config.limit} prompts of each group of dimensions were used.")
    if config.suite == "i2v" and not config.custom and config.seeds < 5:
        out.append(f"{config.seeds} videos per prompt: VBench-I2V's protocol uses 5.")
    if not (config.custom or config.suite == "i2v") and (
        config.seeds < 5 or config.static_seeds < 25
    ):
        out.append(
            f"{config.seeds} videos per prompt and {config.static_seeds} for the static filter:"
            " VBench's protocol uses 5 and 25."
        )
    unfiltered = config.suite == "t2v" and not config.custom and not config.static_filter
    if unfiltered and "temporal_flickering" in checked.ready:
        out.append("temporal_flickering uses unfiltered videos, unlike VBench's protocol.")
    return (*out, "Therefore no totals are given.") if out else ()


def gaps(student: Scores, teacher: Scores, compared: Collection[str]) -> tuple[str, ...]:
    """Explain why a scored dimension has no value or no difference.

    VBench leaves out videos that move (temporal_flickering) or that do not show the prompt's
    object.

    Args:
        student: Scores of the student, by dimension and file.
        teacher: Scores of the teacher, by dimension and file.
        compared: Dimensions that have a difference.

    Returns:
        Sentences.
    """
    out = []
    for name in student:
        empty = [
            side for side, scores in zip(NAMES, (student, teacher), strict=True) if not scores[name]
        ]
        if empty:
            out.append(
                f"{name}: no video of the {' or the '.join(empty)} is static, which its filter"
                " requires, so there is no score, no difference and no total."
            )
        elif name not in compared:
            out.append(
                f"{name}: no prompt has scored videos of both, so there is no difference, and none"
                " of the totals."
            )
    return tuple(out)


def _pairs(out: Path, prompts: dict[str, str], student: Scores, teacher: Scores) -> list[Pair]:
    """Return a pair of videos for each prompt, with its first seed. The gain is the mean normalised
    gain over its dimensions and seeds.
    """
    gains: dict[str, list[float]] = {}
    for name, videos in student.items():
        for file in videos.keys() & teacher[name].keys():
            scale = FACTS[name].high - FACTS[name].low
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
