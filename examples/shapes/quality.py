"""Measure the teacher: reconstruction, guidance, and the effect of using few steps.

Writes `quality.json` to the teacher's folder. Samples come from the stock pipeline in float32, for
held-out captions.

Shapes: N videos [N, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import CogVideoXPipeline
from torch import Tensor
from tqdm import tqdm

from tdmvid.shapes import world
from tdmvid.shapes.judge import Judge, accuracy, load_judge
from tdmvid.shapes.score import evaluation_set, reference_features, score_videos

from . import text
from .vae import psnr

GUIDANCES = (1.5, 2.0, 3.0)
CAPTIONS, SWEEP_CAPTIONS, SEEDS, REFERENCE = 64, 12, 4, 4096


def sample(
    pipe: CogVideoXPipeline,
    things: list[tuple[world.Thing, ...]],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch: int = 32,
) -> Tensor:
    """Sample one video per caption with the stock pipeline.

    Args:
        pipe: The pipeline.
        things: Objects of N captions.
        steps: Number of steps.
        guidance: Guidance scale.
        seed: Seed of the noise, which is drawn batch by batch.
        batch: Videos per call.

    Returns:
        Videos [N, 3, F, H, W] in [-1, 1].
    """
    generator, videos = torch.Generator().manual_seed(seed), []
    pipe.set_progress_bar_config(disable=True)
    for start in tqdm(
        range(0, len(things), batch), desc=f"{steps} steps, guidance {guidance}", leave=False
    ):
        captions = [world.caption(t) for t in things[start : start + batch]]
        frames = pipe(
            captions,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            output_type="pt",
            max_sequence_length=text.MAX_LENGTH,
            num_frames=world.FRAMES,
            height=world.SIZE,
            width=world.SIZE,
        ).frames
        videos.append(frames.transpose(1, 2).float().cpu() * 2 - 1)
    return torch.cat(videos)


def _summary(judge: Judge, videos: Tensor, things: list, reference: Tensor) -> dict:
    scores = score_videos(judge, videos, things, reference)
    rounded = {
        name: {k: round(v, 4) for k, v in measure.items()} for name, measure in scores.items()
    }
    for name, size in (("singles", 1), ("pairs", 2)):
        rows = [i for i, t in enumerate(things) if len(t) == size]
        part = score_videos(judge, videos[rows], [things[i] for i in rows], reference)["all"]
        rounded[f"all_{name}"] = {k: round(v, 4) for k, v in part.items()}
    return rounded


def choose_guidance(pipe: CogVideoXPipeline, judge: Judge, *, seed: int) -> tuple[float, dict]:
    """Choose the guidance scale with the smallest Fréchet distance among those within one point of
    the best accuracy.

    Args:
        pipe: The pipeline.
        judge: The judge.
        seed: Seed of captions and noise.

    Returns:
        The scale, and the scores of all scales.
    """
    things, sweep = evaluation_set(SWEEP_CAPTIONS, SEEDS, seed), {}
    reference = reference_features(judge, things, REFERENCE, seed)
    for guidance in GUIDANCES:
        videos = sample(pipe, things, steps=50, guidance=guidance, seed=seed)
        sweep[guidance] = _summary(judge, videos, things, reference)
        print(
            f"guidance {guidance}: "
            + ", ".join(f"{k} {v['value']}" for k, v in sweep[guidance].items())
        )
    best = max(scores["all"]["value"] for scores in sweep.values())
    good = [g for g, scores in sweep.items() if scores["all"]["value"] >= best - 0.01]
    return min(good, key=lambda g: sweep[g]["frechet"]["value"]), sweep


def measure(folder: Path, *, device: str, seed: int = 4321) -> dict:
    """Measure a pipeline and write `quality.json` to its folder.

    Args:
        folder: Folder of the pipeline.
        device: Device to sample on.
        seed: Seed of captions and noise.

    Returns:
        Contents of the file.
    """
    pipe = CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    judge = load_judge(device=device)
    guidance, sweep = choose_guidance(pipe, judge, seed=seed + 1)
    things = evaluation_set(CAPTIONS, SEEDS, seed + 2)
    reference = reference_features(judge, things, REFERENCE, seed)
    truth = world.draw_videos(things, torch.Generator().manual_seed(seed + 3))
    rows = {"ground_truth": _summary(judge, truth, things, reference)}
    for name, steps, scale in (
        ("50_steps_guided", 50, guidance),
        ("4_steps_guided", 4, guidance),
        ("4_steps_unguided", 4, 1.0),
    ):
        videos = sample(pipe, things, steps=steps, guidance=scale, seed=seed + 4)
        rows[name] = _summary(judge, videos, things, reference)
        print(f"{name}: " + ", ".join(f"{k} {v['value']}" for k, v in rows[name].items()))
    result = {
        "vae_psnr_db": round(psnr(pipe.vae), 2),
        "judge_accuracy_ground_truth": accuracy(judge, count=1000),
        "guidance": guidance,
        "captions": CAPTIONS,
        "seeds_per_caption": SEEDS,
        "scores": rows,
        "guidance_sweep": sweep,
    }
    (folder / "quality.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
