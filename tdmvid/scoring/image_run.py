"""Image metrics of a student and its teacher: sample both, score them, compare them prompt by
prompt. See `tdmvid score images`.

The FID between the student and its own teacher measures how much of the teacher's style it keeps.
Metrics whose weights or libraries are missing are listed and skipped.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..config import ImageConfig, to_dict
from ..data.files import check_writable, write_json
from ..data.media_folders import IMAGES, media_files
from ..data.progress import progress
from ..data.prompts import read_prompts
from ..data.video import read_image
from ..parallel import launch
from ..sampling.shots import Shot, plan_shots
from .image_metrics import METRICS, ImageMetric, ImageSet, SetMetric
from .intervals import Measure, mean_over_groups, paired_difference
from .kept_scores import FOLDER, keep, key_of, stamp
from .paired_samples import NAMES, config_mismatches, sample_metadata, sample_sides
from .preflight import Preflight, preflight
from .results import Pair, Result, describe_sets, write_result
from .vbench_suite import check_videos

Scores = dict[str, dict[str, float]]
"""Mean over seeds, by metric and prompt."""
REAL = "reference"
"""Name of the real images beside those of `NAMES`."""


def ready(config: ImageConfig) -> Preflight:
    """Check which metrics can run on this machine.

    Args:
        config: Settings of the evaluation.

    Returns:
        Available metrics, and what the others lack.

    Raises:
        ValueError: A metric is unknown.
    """
    if unknown := sorted(set(config.metrics) - set(METRICS)):
        raise ValueError(
            f"metrics={list(config.metrics)} contains the unknown metric {unknown[0]!r}: choose"
            f" from {', '.join(METRICS)}"
        )
    needs = {name: METRICS[name].needs for name in config.metrics}
    asked = {need.path for wanted in needs.values() for need in wanted if need.package}
    packages = [name for name in asked if importlib.util.find_spec(name) or shutil.which(name)]
    cache = Path(config.cache).resolve()
    return preflight(list(config.metrics), needs, cache, packages=packages)


def run(config: ImageConfig, checked: Preflight, student: Path, out: Path) -> None:
    """Sample student and teacher, score them and write the results, on any number of ranks.

    Args:
        config: Settings of the evaluation.
        checked: Result of `ready`.
        student: Folder of the student.
        out: Folder to write to.

    Raises:
        ValueError: No metric can be computed, or the samples do not suffice for one.
    """
    if not checked.ready:
        print(checked.describe())
        raise ValueError(
            f"metrics={list(config.metrics)}: no metric can be computed; install the missing files"
            " that are listed above"
        )
    shots = shots_of(config)
    check_shots(config, shots, checked.ready)
    check_writable(out, "--out")
    # Ranks wait until the slowest one has made its last image.
    world = launch.start("auto", timeout_minutes=24 * 60)
    if world.primary:
        print(checked.describe(), flush=True)
    sample_sides(out, shots, config, student, world)
    launch.finish()
    torch.cuda.empty_cache()
    if world.primary:
        write_json(out / "config.json", to_dict(config))
        page = compare(out, config, shots, checked, said=config_mismatches(config, student))
        print(f"results: {page}")


def shots_of(config: ImageConfig) -> list[Shot]:
    """Return every prompt with every seed.

    Args:
        config: Settings of the evaluation.

    Returns:
        Samples to make.
    """
    prompts = read_prompts(Path(config.prompts), column=config.column, setting="--set column={}")
    return plan_shots(prompts[: config.limit or None], range(config.seeds), frames=1)


def check_shots(config: ImageConfig, shots: list[Shot], metrics: tuple[str, ...]) -> None:
    """Check before sampling that the metrics can be computed.

    Args:
        config: Settings of the evaluation.
        shots: Samples to make.
        metrics: Names of the metrics.

    Raises:
        ValueError: A metric cannot score the prompts, or needs more images, or a real image cannot
            be read.
    """
    sets = {"images": len(shots)}
    if config.reference:
        real = _pictures(config)
        sets[f"pictures in {config.reference!r}"] = len(real)
        with progress("checking real images", total=len(real), unit="image") as bar:
            for path in real:
                read_image(path)  # a damaged one must not be found after all sampling
                bar.update()
    for metric in (METRICS[name] for name in metrics):
        if isinstance(metric, ImageMetric) and metric.check:
            metric.check([shot.prompt for shot in shots], config.prompts)
        for what, count in sets.items():
            if isinstance(metric, SetMetric) and count < metric.smallest:
                raise ValueError(
                    f"metrics: {metric.name} needs sets of at least {metric.smallest}, but there"
                    f" are {count} {what}; add more, or remove this metric"
                )


def _pictures(config: ImageConfig) -> list[Path]:
    """List the real images."""
    try:
        return media_files(Path(config.reference), IMAGES)
    except ValueError as error:
        raise ValueError(f"reference={error}") from None


def image_set(config: ImageConfig, files: list[Path], prompts: list[str]) -> ImageSet:
    """Create a set of images with the device and weights folder for computing metrics.

    Args:
        config: Settings of the evaluation.
        files: Image files.
        prompts: Prompt of each file; empty for real images.

    Returns:
        The set.
    """
    return ImageSet(
        files,
        prompts,
        side=min(config.video.height, config.video.width),
        cache=Path(config.cache).resolve(),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def score(
    folder: Path,
    config: ImageConfig,
    shots: list[Shot],
    metrics: tuple[str, ...],
    digests: Mapping[str, str],
) -> Scores:
    """Compute the metrics of single images, averaged over the seeds of each prompt.

    The scores of each metric are kept, and read if nothing has changed.

    Args:
        folder: Folder of the samples.
        config: Settings of the evaluation.
        shots: The samples.
        metrics: Names of the metrics.
        digests: Result of `check_videos`.

    Returns:
        Scores by metric and prompt.
    """
    images = image_set(
        config, [folder / shot.file for shot in shots], [shot.prompt for shot in shots]
    )
    chosen = {
        name: metric
        for name, metric in METRICS.items()
        if name in metrics and isinstance(metric, ImageMetric)
    }
    scores: Scores = {}
    with progress(f"measuring {folder.name}", total=len(chosen), unit="metric") as bar:
        for name, metric in chosen.items():
            key = key_of({name: metric.needs}, images, [digests[shot.file] for shot in shots])
            path = folder.parent / FOLDER / f"{folder.name}_{name}.json"
            scores[name] = keep(path, key, partial(metric.score, images))
            bar.update()
    return scores


def score_sets(
    out: Path,
    config: ImageConfig,
    shots: list[Shot],
    metrics: tuple[str, ...],
    digests: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, float]]:
    """Compute set metrics between student and teacher, and between both and the real images if
    there are any.

    The values of each comparison are kept, and read if nothing has changed.

    Args:
        out: Folder with the samples of both.
        config: Settings of the evaluation.
        shots: The samples.
        metrics: Names of the metrics.
        digests: Results of `check_videos` for both, by name.

    Returns:
        Values by comparison and metric.
    """
    wanted: dict[Any, list[str]] = {}
    for name, metric in METRICS.items():
        if name in metrics and isinstance(metric, SetMetric):
            wanted.setdefault(metric.compare, []).append(name)
    if not wanted:
        return {}
    sides = {name: image_set(config, [out / name / s.file for s in shots], []) for name in NAMES}
    contents: dict[str, Any] = {name: [digests[name][s.file] for s in shots] for name in NAMES}
    against = [("student to teacher", "student", "teacher")]
    if config.reference:
        sides[REAL] = image_set(config, _pictures(config), [])
        contents[REAL] = [stamp(path) for path in sides[REAL].files]
        against += [(f"{name} to {config.reference}", name, REAL) for name in NAMES]
    found: dict[str, dict[str, float]] = {}
    with progress("comparing sets", total=len(against), unit="pair") as bar:
        for what, ours, theirs in against:
            found[what] = {}
            for compare, names in wanted.items():
                needs = {name: METRICS[name].needs for name in names}
                key = key_of(needs, sides[ours], contents[ours], contents[theirs])
                path = out / FOLDER / f"{ours}_{'_'.join(names)}_{theirs}.json"
                compute = partial(compare, sides[ours], sides[theirs], names)
                found[what] |= keep(path, key, compute)
            bar.update()
    return found


def measures(scores: Scores) -> dict[str, Measure]:
    """Average scores over prompts, with bootstrap intervals.

    Args:
        scores: Scores by metric and prompt.

    Returns:
        Means by metric.
    """
    return {
        name: mean_over_groups(torch.tensor(list(values.values())), torch.arange(len(values)))
        for name, values in scores.items()
    }


def differences(student: Scores, teacher: Scores) -> dict[str, Measure]:
    """Compare student and teacher, paired by prompt.

    Args:
        student: Scores by metric and prompt.
        teacher: Scores by metric and prompt.

    Returns:
        Mean differences by metric, positive if the student's score is higher.
    """
    return {
        name: paired_difference(
            *(
                torch.tensor([side[name][prompt] for prompt in student[name]])
                for side in (student, teacher)
            )
        )
        for name in student
    }


def compare(
    out: Path, config: ImageConfig, shots: list[Shot], checked: Preflight, *, said: tuple[str, ...]
) -> Path:
    """Score student and teacher and write results.json, results.md and results.html.

    Args:
        out: Folder with the samples of both, and for the results.
        config: Settings of the evaluation.
        shots: The samples.
        checked: Available metrics.
        said: Further notes for the reader.

    Returns:
        The page.
    """
    files = [shot.file for shot in shots]
    digests = {name: check_videos(out / name, files, config.video) for name in NAMES}
    sides = {name: score(out / name, config, shots, checked.ready, digests[name]) for name in NAMES}
    sets = score_sets(out, config, shots, checked.ready, digests)
    student, teacher = (sides[name] for name in NAMES)
    notes = (*((f"Left out: {', '.join(checked.missing)}.",) if checked.missing else ()), *said)
    size = config.video
    protocol = (
        f"{len({shot.prompt for shot in shots})} prompts of {config.prompts}, {config.seeds} seeds"
        f" each, the same noise for both; {size.height} x {size.width}; teacher in"
        f" {config.teacher.steps} steps with guidance {config.teacher.guidance}; 95 % bootstrap"
        " intervals over prompts, the difference paired."
    )
    result = Result(
        title=f"Images: {out.resolve().parent.name}",
        protocol=protocol,
        notes=notes,
        names=NAMES,
        scores=(measures(student), measures(teacher)),
        differences=differences(student, teacher),
        figures=describe_sets(sets),
        percent=False,
        facts=sample_metadata(out, shots) | {"config": to_dict(config), "sets": sets},
    )
    page = write_result(out, result, _pairs(out, shots, student, teacher), shown=config.pairs)
    print((out / "results.md").read_text())
    return page


def _pairs(out: Path, shots: list[Shot], student: Scores, teacher: Scores) -> list[Pair]:
    """Return a pair of samples for each prompt, with its first seed. The gain is in standard
    deviations of the first metric of single images.
    """
    if not student:
        return []
    name = next(iter(student))
    gains = {prompt: value - teacher[name][prompt] for prompt, value in student[name].items()}
    spread = math.sqrt(sum(gain**2 for gain in gains.values()) / len(gains)) or 1.0
    first = {shot.prompt: shot.file for shot in reversed(shots)}
    return [
        Pair(
            prompt, gain / spread, (out / NAMES[0] / first[prompt], out / NAMES[1] / first[prompt])
        )
        for prompt, gain in gains.items()
    ]
