"""Measure a distilled style LoRA: the style, the judge's accuracy, and a picture.

    python -m examples.shapes.score_night --style build/night --run runs/night --out build/page

Compares the teacher without and with the style LoRA, and both exports of the run: `lora`, loaded
beside the style LoRA, and `lora_merged`, loaded alone. All are stock pipelines in float32 and start
from the same noise. Prompts are held-out captions. Writes scores.json and samples.jpg.

Shapes: N videos [N, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXPipeline
from PIL import Image
from torch import Tensor

from tdmvid.adapters.bundle import FACTS, read_facts
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_options
from tdmvid.export.load import load_pipeline
from tdmvid.shapes import TEACHER, metrics
from tdmvid.shapes.judge import Judge, attributes, features, load_judge
from tdmvid.shapes.score import evaluation_set

from . import night
from .quality import sample

SHOWN = 8  # captions in the picture
STEPS, GUIDANCE = 50, 2.0  # the teacher's sampling


def teacher(style: Path | None = None) -> CogVideoXPipeline:
    """Load the teacher.

    Args:
        style: Folder of a LoRA to load into it.

    Returns:
        The stock pipeline in float32.
    """
    pipe = CogVideoXPipeline.from_pretrained(TEACHER, torch_dtype=torch.float32)
    if style is not None:
        pipe.load_lora_weights(style)
    return pipe


def samplers(style: Path, run: Path) -> dict[str, tuple[Any, int, float]]:
    """Load the pipelines to compare.

    Args:
        style: Folder of the style LoRA.
        run: Folder of the run that distilled it.

    Returns:
        For each name a pipeline, its number of steps and its guidance scale.

    Raises:
        ValueError: A folder has no LoRA, or the run has no student.
    """
    if not any(style.glob("*.safetensors")):
        raise ValueError(
            f"--style {style} has no .safetensors file: make the LoRA with"
            " examples.shapes.make_night_lora"
        )
    few = read_facts(run / "lora").get("steps")
    if not few:
        raise ValueError(f"--run {run}: lora/{FACTS} has no steps; choose a finished run")
    return {
        "teacher": (teacher(), STEPS, GUIDANCE),
        "teacher with the style LoRA": (teacher(style), STEPS, GUIDANCE),
        "the same, few steps": (teacher(style), few, GUIDANCE),
        "student, lora beside the style LoRA": (
            load_pipeline(run / "lora", dtype="float32"),
            few,
            1.0,
        ),
        "student, lora_merged": (load_pipeline(run / "lora_merged", dtype="float32"), few, 1.0),
    }


def scores_of(judge: Judge, videos: Tensor, things: list, seeds: int) -> dict[str, float]:
    """Score videos.

    Args:
        judge: The judge.
        videos: Videos [N, 3, F, H, W].
        things: Objects of each caption.
        seeds: Videos per caption, consecutive.

    Returns:
        `night`: share of videos with the style. `background`: mean shade. `right`: share of videos
        with all attributes right. `right_low`, `right_high`: its 95 % bootstrap interval.
        `diversity`: between seeds.
    """
    group = torch.arange(len(videos) // seeds).repeat_interleave(seeds)
    right = metrics.mean_over_groups(attributes(judge, videos, things)["all"], group)
    return {
        "night": night.shows_night(videos).float().mean().item(),
        "background": night.background(videos).mean().item(),
        "right": right.value,
        "right_low": right.low,
        "right_high": right.high,
        "diversity": metrics.diversity(features(judge, videos), group).value,
    }


def write_picture(rows: list[Tensor], path: Path) -> None:
    """Write the middle frames of videos as a grid, one row per sampler.

    Args:
        rows: Videos [N, 3, F, H, W] of each sampler.
        path: Image file.
    """
    strips = [torch.cat([*videos[:SHOWN, :, videos.shape[2] // 2]], -1) for videos in rows]
    grid = (torch.cat(strips, -2).clamp(-1, 1) + 1) * 127.5
    Image.fromarray(grid.byte().permute(1, 2, 0).numpy()).save(path, quality=90)


def main() -> None:
    """Sample, score and write the results."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", type=Path, required=True, help="folder of the style LoRA")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--captions", type=int, default=24, help="held-out captions")
    parser.add_argument("--seeds", type=int, default=4, help="videos per caption")
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and noise")
    args = parser.parse_args()
    check_options(vars(args))
    args.out.mkdir(parents=True, exist_ok=True)
    judge, things = load_judge(), evaluation_set(args.captions, args.seeds, args.seed)
    scores, rows = {}, []
    for name, (pipe, steps, guidance) in samplers(args.style, args.run).items():
        videos = sample(pipe, things, steps=steps, guidance=guidance, seed=args.seed + 2)
        scores[name] = {"steps": steps} | scores_of(judge, videos, things, args.seeds)
        rows.append(videos[:: args.seeds])
        print(name, scores[name], flush=True)
    truth = night.draw_videos(things, torch.Generator().manual_seed(args.seed + 3))
    scores["ground truth in the style"] = scores_of(judge, truth, things, args.seeds)
    (args.out / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    write_picture(rows, args.out / "samples.jpg")


if __name__ == "__main__":
    run_program(main)
