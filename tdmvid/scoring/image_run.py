"""Image metrics of a student beside its teacher: sample, score, compare prompt by prompt; see
`tdmvid score images`.

The student's FID to its own teacher says how much of the teacher's style it kept. Measures whose
weights or libraries are not there are left out and named.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..backbones.base import ClipSize, ModelConfig
from ..config.run import to_dict
from ..data.files import write_json
from ..data.prompts import read_prompts
from ..parallel import launch
from ..sampling.sample import Shot, plan_shots
from . import images
from .intervals import Measure, mean_over_groups, paired_difference
from .results import Pair, Result, write_result
from .sides import NAMES, foreign, sample_sides, sampled
from .suite import TeacherSampling, check_videos
from .weights import Preflight, preflight

Scores = dict[str, dict[str, float]]
"""Measure -> prompt -> its mean over seeds."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class ImageConfig:
    """One evaluation of an image model."""

    prompts: str = ""
    column: str = "prompt"
    limit: int = 0
    """Only the first so many prompts; 0 takes all."""
    seeds: int = 1
    metrics: tuple[str, ...] = ("hps", "clip", "aesthetic", "fid")
    reference: str = ""
    """A folder of real images, for FID and precision and recall against them; both are measured
    against the teacher anyway.
    """
    model: ModelConfig = ModelConfig()
    """Empty takes the base that the student names."""
    video: ClipSize = ClipSize(1, 512, 512, 8)
    teacher: TeacherSampling = field(default_factory=lambda: TeacherSampling(50, 7.5))
    batch: int = 4
    embeddings: str = "cache/embeddings"
    cache: str = "cache/metrics"
    """Where the weights of the metrics lie."""
    pairs: int = 6

    def __post_init__(self):
        for name in self.metrics:
            if name not in images.NEEDS:
                raise ValueError(
                    f"metrics: {name!r} is not known: choose from {', '.join(images.NEEDS)}"
                )
        if not self.prompts:
            raise ValueError("prompts is empty: give a .txt, .jsonl, .csv or .parquet file")
        if min(self.seeds, self.batch) < 1 or self.limit < 0:
            raise ValueError(
                f"seeds={self.seeds}, batch={self.batch}, limit={self.limit}: at least 1, 1 and 0"
            )
        if "diversity" in self.metrics and self.seeds < 2:
            raise ValueError(
                f"seeds={self.seeds}: diversity compares at least 2 images of a prompt"
            )
        if self.video.frames != 1:
            raise ValueError(
                f"video.frames={self.video.frames}: these are measures of images;"
                " `tdmvid score vbench` scores videos"
            )


def ready(config: ImageConfig) -> Preflight:
    """Which measures can run here."""
    packages = [
        name for name in ("open_clip", "torch_fidelity", "lpips") if importlib.util.find_spec(name)
    ]
    packages += ["tesseract"] if shutil.which("tesseract") else []
    return preflight(
        list(config.metrics), images.NEEDS, Path(config.cache).resolve(), packages=packages
    )


def run(config: ImageConfig, checked: Preflight, student: Path, out: Path) -> None:
    """Sample both sides into `out`, measure them and write the results, on any number of ranks."""
    if not checked.ready:
        print(checked.describe())
        raise ValueError(
            f"metrics={list(config.metrics)}: nothing can be measured, the files that are missing"
            " are listed above"
        )
    shots = shots_of(config)
    check_shots(config, shots, checked.ready)
    # Ranks wait for the slowest one's last image.
    world = launch.start("auto", timeout_minutes=24 * 60)
    if world.primary:
        print(checked.describe(), flush=True)
    sample_sides(out, shots, config, student, world)
    launch.finish()
    torch.cuda.empty_cache()
    if world.primary:
        write_json(out / "config.json", to_dict(config))
        page = compare(out, config, shots, checked, said=foreign(config, student))
        print(f"results: {page}")


def shots_of(config: ImageConfig) -> list[Shot]:
    """Every prompt with every seed."""
    prompts = read_prompts(Path(config.prompts), column=config.column)
    return plan_shots(prompts[: config.limit or None], range(config.seeds), frames=1)


def check_shots(config: ImageConfig, shots: list[Shot], metrics: tuple[str, ...]) -> None:
    """ValueError, before anything is sampled, for what the measures could not be taken of."""
    if "text" in metrics and not any(images.wanted_text(shot.prompt) for shot in shots):
        raise ValueError(
            f"metrics: text reads what prompts ask to be written, and none of {config.prompts} has"
            ' words in "quotation marks"'
        )
    if set(images.SET_METRICS) & set(metrics):
        sets = {"images": len(shots)} | (
            {f"pictures in {config.reference!r}": len(_pictures(config))}
            if config.reference
            else {}
        )
        for what, count in sets.items():
            if count < images.SMALLEST_SET:
                raise ValueError(
                    "metrics: fid and precision_recall compare sets of at least"
                    f" {images.SMALLEST_SET}, these are {count} {what}"
                )


def _pictures(config: ImageConfig) -> list[Path]:
    """The real images."""
    return sorted(
        path for path in Path(config.reference).rglob("*") if path.suffix.lower() in PICTURES
    )


def score(folder: Path, config: ImageConfig, shots: list[Shot], metrics: tuple[str, ...]) -> Scores:
    """The measures of single images, averaged over each prompt's seeds."""
    cache, device = Path(config.cache).resolve(), "cuda" if torch.cuda.is_available() else "cpu"
    files, prompts = [folder / shot.file for shot in shots], [shot.prompt for shot in shots]
    single: dict[str, list[float | None]] = {}
    if "hps" in metrics:
        single["hps"] = images.load_hps(cache, device).similarity(files, prompts).tolist()
    if {"clip", "aesthetic"} & set(metrics):
        clip = images.load_clip(cache, device)
        features = clip.images(files)
        if "clip" in metrics:
            single["clip"] = (100 * (features * clip.texts(prompts)).sum(1)).tolist()
        if "aesthetic" in metrics:
            single["aesthetic"] = images.aesthetic(
                features, cache / images.NEEDS["aesthetic"][0].path
            ).tolist()
    if "text" in metrics:
        wanted = [images.wanted_text(prompt) for prompt in prompts]
        single["text"] = [
            images.legibility(file, text) if text else None for file, text in zip(files, wanted)
        ]
    out = {name: _by_prompt(prompts, values) for name, values in single.items()}
    if "diversity" in metrics:
        groups: dict[str, list[Path]] = {}
        for prompt, file in zip(prompts, files):
            groups.setdefault(prompt, []).append(file)
        out["diversity"] = images.diversity(
            groups,
            images.lpips_distance(cache, device),
            side=min(config.video.height, config.video.width),
        )
    return out


def _by_prompt(prompts: list[str], values: list[float | None]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values):
        if value is not None:
            groups.setdefault(prompt, []).append(value)
    return {prompt: sum(group) / len(group) for prompt, group in groups.items()}


def score_sets(
    out: Path, config: ImageConfig, shots: list[Shot], metrics: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """FID, precision and recall: the student against the teacher, and both against the real images
    if there are any.
    """
    wanted = [name for name in images.SET_METRICS if name in metrics]
    if not wanted:
        return {}
    sides = {name: [out / name / shot.file for shot in shots] for name in NAMES}
    against = [("student to teacher", sides["student"], sides["teacher"])]
    if config.reference:
        against += [
            (f"{name} to {config.reference}", files, _pictures(config))
            for name, files in sides.items()
        ]
    weights = Path(config.cache).resolve() / images.NEEDS["fid"][0].path
    side, cuda = min(config.video.height, config.video.width), torch.cuda.is_available()
    return {
        what: images.set_metrics(ours, theirs, wanted, weights, side=side, cuda=cuda)
        for what, ours, theirs in against
    }


def measures(scores: Scores) -> dict[str, Measure]:
    """Means over prompts with bootstrap intervals."""
    return {
        name: mean_over_groups(torch.tensor(list(values.values())), torch.arange(len(values)))
        for name, values in scores.items()
    }


def differences(student: Scores, teacher: Scores) -> dict[str, Measure]:
    """Paired by prompt."""
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
    """Score both sides and write results.json, .md and .html; said: what a reader must know."""
    for name in NAMES:
        check_videos(out / name, [shot.file for shot in shots], config.video)
    sides = {name: score(out / name, config, shots, checked.ready) for name in NAMES}
    sets = score_sets(out, config, shots, checked.ready)
    student, teacher = (sides[name] for name in NAMES)
    notes = (*((f"Left out: {', '.join(checked.missing)}.",) if checked.missing else ()), *said)
    figures = tuple(
        f"{what}: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}"
        for what, found in sets.items()
    )
    size = config.video
    protocol = (
        f"{len({shot.prompt for shot in shots})} prompts of {config.prompts}, {config.seeds} seeds"
        f" each, the same noise for both; {size.height} x {size.width}; teacher in"
        f" {config.teacher.steps} steps with guidance {config.teacher.cfg:g}; 95 % bootstrap"
        " intervals over prompts, the difference paired."
    )
    result = Result(
        title=f"Images: {out.resolve().parent.name}",
        protocol=protocol,
        notes=notes,
        names=NAMES,
        scores=(measures(student), measures(teacher)),
        differences=differences(student, teacher),
        figures=figures,
        percent=False,
        facts=sampled(out) | {"config": to_dict(config), "sets": sets},
    )
    page = write_result(out, result, _pairs(out, shots, student, teacher), shown=config.pairs)
    print((out / "results.md").read_text())
    return page


def _pairs(out: Path, shots: list[Shot], student: Scores, teacher: Scores) -> list[Pair]:
    """A pair for every prompt, of its first seed, by the first measure of single images: its gain
    in standard deviations.
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
