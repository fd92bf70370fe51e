"""Train a style LoRA on the shapes teacher, as an example of a LoRA to distil.

    python -m examples.shapes.make_night_lora --out build/night

The LoRA gives all videos a nearly black background (see night.py). It is trained with the teacher's
own loss, the mean squared error of v, on ground-truth videos in the style. The file is in the
layout of diffusers. docs/distil_a_lora.md continues from here.

Shapes: latents [B, F=3, C=16, H=8, W=8], text embeddings [B, 16, D].
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from tqdm import tqdm

from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_number
from tdmvid.config.ranges import MILLION, Range
from tdmvid.shapes import TEACHER, world

from . import night, text

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


@dataclass(frozen=True)
class Recipe:
    """Settings of the training. `videos` ground-truth videos are encoded once."""

    iterations: int = 200
    batch: int = 16
    videos: int = 384
    rank: int = 16
    lr: float = 1e-3
    drop_caption: float = 0.1
    seed: int = 0


@torch.no_grad()
def encode(pipe: CogVideoXPipeline, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Draw and encode the training set.

    Args:
        pipe: The teacher.
        recipe: Settings.

    Returns:
        Latents [N, F, C, H, W], and text embeddings [N + 1, 16, D]; the last is the empty prompt.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    things, latents = world.draw_captions(recipe.videos, generator), []
    for start in tqdm(range(0, len(things), 16), desc="latents"):
        videos = night.draw_videos(things[start : start + 16], generator)
        latents.append(pipe.vae.encode(videos).latent_dist.mode())
    embeddings, _ = pipe.encode_prompt(
        [*(world.caption(t) for t in things), ""],
        do_classifier_free_guidance=False,
        max_sequence_length=text.MAX_LENGTH,
    )
    return torch.cat(latents).transpose(1, 2) * pipe.vae.config.scaling_factor, embeddings


def loss_of(
    pipe: CogVideoXPipeline, data: tuple[Tensor, Tensor], step: int, recipe: Recipe
) -> Tensor:
    """Compute the squared error of v on the batch of a step.

    Args:
        pipe: The teacher with the LoRA.
        data: Latents and embeddings from `encode`.
        step: Number of the step, which seeds the batch.
        recipe: Settings.

    Returns:
        The loss, a scalar.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 9_000_011 + step)
    (latents, embeddings), count = data, recipe.batch
    scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    pick = torch.randint(len(latents), (count,), generator=generator)
    t = (1000 * (torch.arange(count) + torch.rand(count, generator=generator)) / count).long()
    empty = torch.rand(count, generator=generator) < recipe.drop_caption
    eps = torch.randn(count, *latents.shape[1:], generator=generator)
    x0, captions = latents[pick], embeddings[torch.where(empty, len(latents), pick)]
    with torch.autocast("cpu", torch.bfloat16):
        v = pipe.transformer(scheduler.add_noise(x0, eps, t), captions, t).sample
    return (v.float() - scheduler.get_velocity(x0, eps, t)).square().mean()


def train(out: Path, recipe: Recipe) -> None:
    """Train the LoRA and write it to `out`.

    Args:
        out: Output folder.
        recipe: Settings.
    """
    torch.manual_seed(recipe.seed)
    pipe = CogVideoXPipeline.from_pretrained(TEACHER, torch_dtype=torch.float32)
    data = encode(pipe, recipe)
    pipe.transformer.requires_grad_(False)
    pipe.transformer.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=TARGETS)
    )
    trained = [p for p in pipe.transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.iterations)
    bar = tqdm(range(recipe.iterations), desc="LoRA")
    for step in bar:
        loss = loss_of(pipe, data, step, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
    pipe.save_lora_weights(out, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    print(f"LoRA: {out}")


def main() -> None:
    """Train the LoRA."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument(
        "--iterations", type=int, default=Recipe.iterations, help="training iterations"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="seed of data and noise")
    args = parser.parse_args()
    check_number("--iterations", args.iterations, Range(1, MILLION, "iterations"))
    train(args.out, Recipe(iterations=args.iterations, seed=args.seed))


if __name__ == "__main__":
    run_program(main)
