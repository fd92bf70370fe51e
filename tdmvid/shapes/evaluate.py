"""Score samplers on the shapes world with held-out captions, fixed seeds and shared noise.

Every sampler is the stock diffusers pipeline with the LoRA and the scheduler that a run exported.
See `tdmvid score shapes`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.base import Backbone
from ..config import ClipSize
from ..diffusion.denoiser import Cond
from ..sampling.student import use_student
from ..scoring.intervals import measure_of
from . import score, world
from .judge import load_judge

SIZE = ClipSize(world.FRAMES, world.SIZE, world.SIZE, 8)
COLUMNS = [
    {"key": "all", "label": "all attributes right", "unit": "%", "better": "high"},
    {"key": "colour", "label": "colour", "unit": "%", "better": "high"},
    {"key": "shape", "label": "shape", "unit": "%", "better": "high"},
    {"key": "direction", "label": "direction", "unit": "%", "better": "high"},
    {"key": "frechet", "label": "Fréchet distance", "unit": "", "better": "low"},
    {"key": "diversity", "label": "diversity", "unit": "", "better": "high"},
    {"key": "flicker", "label": "flicker", "unit": "", "better": "low"},
]
IMAGE_COLUMN = {
    "key": "first_frame",
    "label": "distance of the first frame from the given one",
    "unit": "grey levels",
    "better": "low",
}
"""Column of an image-to-video teacher."""


@dataclass(frozen=True)
class ScoredSampler:
    """Settings of a stock pipeline call, shown as a row of the report."""

    name: str
    steps: int
    cfg: float
    student: Path | None = None
    """Folder of a LoRA, or of a full network and its scheduler; None samples with the teacher."""
    dynamic: bool = False
    """Whether the guidance scale changes over time as with diffusers' `use_dynamic_cfg`."""

    @property
    def nfe(self) -> int:
        """Network evaluations per video. A guided step costs two."""
        return self.steps * (1 if self.cfg == 1 else 2)


@dataclass(frozen=True)
class Protocol:
    """Number of samples and references of an evaluation."""

    captions: int = 64
    seeds: int = 4
    """Videos per caption."""
    reference: int = 4096
    """Ground-truth videos for the Fréchet distance."""
    seed: int = 0
    batch: int = 64

    def __post_init__(self):
        if self.captions < 1 or self.seeds < 2:
            raise ValueError(
                f"--captions {self.captions}, --seeds {self.seeds}: use at least one caption and"
                " two seeds, because diversity compares the videos of a caption"
            )
        if self.reference < 2:
            raise ValueError(f"--reference {self.reference}: use at least two ground-truth videos")

    def describe(self) -> str:
        """Describe the protocol in a sentence to print next to the results.

        Returns:
            The sentence.
        """
        return (
            f"{self.captions} held-out captions x {self.seeds} seeds, the same noise for every"
            f" sampler (seed {self.seed}); Fréchet distance to {self.reference} fresh ground-truth"
            " videos of the same captions; 95 % bootstrap intervals; seconds of the denoiser alone;"
            " tdmvid score shapes"
        )


def run_samplers(run: Path, config: dict) -> list[ScoredSampler]:
    """Return the samplers to compare for a run.

    Args:
        run: Folder of the run.
        config: Settings of the run.

    Returns:
        The teacher with many steps, the teacher with as few steps as the student (with and without
        guidance), and the student.

    Raises:
        ValueError: The run has no exported student.
    """
    cfg, long, grid = config["objective"]["cfg"], config["log"]["teacher_steps"], config["grid"]
    few = len(grid["timesteps"]) if grid["kind"] == "explicit" else grid["steps"]
    student = student_of(run, config)
    if not student.is_dir():
        raise ValueError(
            f"{run} has no {student.name}/: finish the training first (tdmvid train --config ..."
            " --resume auto)"
        )
    dynamic = config["objective"].get("use_dynamic_cfg", False)
    scale = f"cfg {cfg:g}" + ", dynamic" * dynamic
    return [
        ScoredSampler(f"teacher, {long} steps, {scale}", long, cfg, dynamic=dynamic),
        ScoredSampler(f"teacher, {few} steps, {scale}", few, cfg, dynamic=dynamic),
        ScoredSampler(f"teacher, {few} steps, no guidance", few, 1.0),
        ScoredSampler(f"student, {few} steps", few, 1.0, student),
    ]


def student_of(run: Path, config: dict) -> Path:
    """Return the folder a run exports its student to.

    Args:
        run: Folder of the run.
        config: Settings of the run.

    Returns:
        Folder of a LoRA or of a full network.
    """
    return run / ("lora" if config["training"] == "lora" else "student")


class Evaluation:
    """Captions, noise and ground truth of a protocol, prepared once for any number of samplers.

    Shapes: N samples; latents [N, C, F, H, W].

    Args:
        backbone: The teacher's model family.
        protocol: Number of samples and references.
    """

    def __init__(self, backbone: Backbone, protocol: Protocol):
        seed = protocol.seed
        self.backbone, self.protocol, self.judge = backbone, protocol, load_judge()
        self.things = score.evaluation_set(protocol.captions, protocol.seeds, seed)
        self.reference = score.reference_features(
            self.judge, self.things, protocol.reference, seed + 1
        )
        self.cond = backbone.encode_prompts([world.caption(t) for t in self.things])
        self.null = backbone.encode_prompts([""])
        backbone.release_text()
        generator = torch.Generator().manual_seed(seed + 2)
        shape = (len(self.things), *backbone.latent_shape())
        self.z = torch.randn(shape, generator=generator)
        self.truth = world.draw_videos(self.things, generator)
        self.given: Tensor | None = None
        """First frames [N, 3, H, W] that the samples start from."""
        if backbone.takes_images:
            self.given = self.truth[:, :, 0]
            encoded = [backbone.encode_images(images) for images in self.given.split(32)]
            self.cond = self.cond.replaced_by(Cond.cat(encoded))

    def score_truth(self) -> dict:
        """Score ground truth.

        Returns:
            A row of the report.
        """
        return {"name": "ground truth", "metrics": self.measure(self.truth)}

    def score(self, sampler: ScoredSampler) -> dict:
        """Sample and score.

        Args:
            sampler: Settings of a stock pipeline call.

        Returns:
            A row of the report.
        """
        videos, seconds = self.sample(sampler)
        metrics = self.measure(videos)
        print(f"{sampler.name}: {summary(metrics)}")
        return {
            "name": sampler.name,
            "nfe": sampler.nfe,
            "seconds_per_video": seconds,
            "metrics": metrics,
        }

    def measure(self, videos: Tensor) -> dict:
        """Score videos of the captions.

        Args:
            videos: Videos [N, 3, F, H, W] in [-1, 1].

        Returns:
            {"value", "low", "high"} by name, low and high None without an interval; see
            `score_videos`.
        """
        return score.score_videos(self.judge, videos, self.things, self.reference, self.given)

    def sample(self, sampler: ScoredSampler) -> tuple[Tensor, float]:
        """Sample a video for each caption with the stock pipeline.

        Args:
            sampler: Settings of the call.

        Returns:
            Videos [N, 3, F, H, W], and the seconds per video in the denoiser.
        """
        pipeline = use_student(self.backbone, sampler.student, steps=sampler.steps)
        parts, began, batch = [], time.perf_counter(), self.protocol.batch
        for start in tqdm(range(0, len(self.z), batch), desc=sampler.name):
            rows = slice(start, start + batch)
            parts.append(
                self.backbone.stock.latents(
                    pipeline,
                    self.z[rows],
                    self.cond.rows(rows),
                    steps=sampler.steps,
                    cfg=sampler.cfg,
                    null=self.null,
                    guidance={"use_dynamic_cfg": True} if sampler.dynamic else {},
                )
            )
        seconds = (time.perf_counter() - began) / len(self.z)
        return decode(self.backbone, torch.cat(parts)), seconds


def evaluate(backbone: Backbone, samplers: list[ScoredSampler], protocol: Protocol) -> dict:
    """Score all samplers and the ground truth.

    Args:
        backbone: The teacher's model family.
        samplers: Samplers to compare.
        protocol: Number of samples and references.

    Returns:
        Scores in the layout of the report, ground truth first.
    """
    evaluation = Evaluation(backbone, protocol)
    rows = [evaluation.score_truth(), *map(evaluation.score, samplers)]
    said, columns = protocol.describe(), COLUMNS
    if evaluation.given is not None:
        said += "; given first frames of fresh scenes"
        columns = [*COLUMNS, IMAGE_COLUMN]
    return {"protocol": said, "columns": columns, "samplers": rows}


def decode(backbone: Backbone, latents: Tensor) -> Tensor:
    """Decode latents in small batches.

    Args:
        backbone: The teacher's model family.
        latents: Latents [N, C, F, H, W].

    Returns:
        Videos [N, 3, F, H, W].
    """
    parts = tqdm(latents.split(32), desc="decoding", leave=False)
    return torch.cat([backbone.decode(part) for part in parts])


def summary(metrics: dict) -> str:
    """Format the main scores in one line.

    Args:
        metrics: Scores of one sampler, by name.

    Returns:
        The line.
    """
    shown = ("all", "shape", "frechet", "diversity", "flicker", "first_frame")
    return ", ".join(
        f"{key} {measure_of(metrics[key]).text('.4g')}" for key in shown if key in metrics
    )


def checks(rows: list[dict]) -> list[dict]:
    """Check what the student is expected to achieve relative to its teacher.

    Args:
        rows: Result rows in the order ground truth, teacher, guided and unguided teacher with few
            steps, student.

    Returns:
        For each claim its text, the measured value and whether it holds.
    """
    names = ("truth", "teacher", "guided", "plain", "student")
    metrics = {name: row["metrics"] for name, row in zip(names, rows, strict=True)}

    def ratio(name: str, key: str) -> float:
        return metrics[name][key]["value"] / metrics["teacher"][key]["value"]

    points = 100 * (metrics["student"]["all"]["value"] - metrics["teacher"]["all"]["value"])
    worse = min(ratio("guided", "frechet"), ratio("plain", "frechet"))
    frechet, diversity = ratio("student", "frechet"), ratio("student", "diversity")
    found: tuple[tuple[str, str, bool], ...] = (
        (
            "the teacher fails with as few steps: its Fréchet distance is at least 2 x that with"
            " many steps",
            f"{worse:.2f} x",
            worse >= 2,
        ),
        (
            "accuracy: at least the teacher's minus 1 point",
            f"{points:+.1f} points",
            points >= -1,
        ),
        ("Fréchet distance: at most 1.1 x the teacher's", f"{frechet:.2f} x", frechet <= 1.1),
        ("diversity: at least 0.9 x the teacher's", f"{diversity:.2f} x", diversity >= 0.9),
    )
    if "first_frame" in metrics["teacher"]:
        kept = ratio("student", "first_frame")
        claim = "the given first frame: at most 1.1 x as far from it as the teacher's"
        found = (*found, (claim, f"{kept:.2f} x", kept <= 1.1))
    return [{"claim": claim, "value": value, "passed": passed} for claim, value, passed in found]
