"""Train the judge of the shapes world on ground truth and on the autoencoder's reconstructions.

Shapes: B videos [B, 3, F, H, W] in [-1, 1]; 6 colours.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
import torch.nn.functional as nnf
from diffusers import AutoencoderKLCogVideoX
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from tdmvid.shapes import layout, world
from tdmvid.shapes.judge import COLOURS, WEIGHTS, Judge

from .checkpoint import load, save
from .vae import schedule

BATCH, LR, WARMUP, EMPTY_SHARE, POOL = 32, 2e-3, 50, 0.05, 1600


def targets(scene: world.Scene) -> dict[str, Tensor]:
    """Return the target outputs of the judge's heads for scenes.

    Args:
        scene: Scenes of B videos.

    Returns:
        Targets per colour, [B, 6] or [B, 6, n], with lengths scaled to about unit size; "shade"
        [B]; and "inside" and "apart" [B], which only the second judge learns.
    """
    rows = torch.arange(len(scene.shade))
    middle = scene.centres()[:, :, world.FRAMES // 2] / (world.SIZE / 2) - 1
    per_slot = {
        "present": scene.present.float(),
        "shape": scene.shape,
        "direction": scene.direction,
        "position": middle,
        "radius": (scene.radius[..., None] - 11) / 2,
        "speed": scene.speed[..., None] - 2.6,
    }
    out = {}
    for name, value in per_slot.items():
        table = value.new_zeros(len(rows), COLOURS, *value.shape[2:])
        for slot in (
            1,
            0,
        ):  # an empty second slot has the first one's colour, so the first slot is written last
            table[rows, scene.colour[:, slot]] = value[:, slot]
        out[name] = table
    masks = world.cover(scene) > layout.COVER
    out |= {"inside": layout.inside(masks).float(), "apart": layout.apart(masks).float()}
    return out | {"shade": (scene.shade - 0.29) / 0.12}


def judge_loss(heads: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Compute the judge's loss: cross-entropies of what captions specify and squared errors of what
    they leave open.

    Args:
        heads: Predictions of the heads, [B, 6] or [B, 6, n], and "shade" [B].
        wanted: Targets.

    Returns:
        The loss (scalar).
    """
    there = wanted["present"].bool()
    loss = nnf.binary_cross_entropy_with_logits(heads["present"], wanted["present"]) * COLOURS
    for name in ("shape", "direction"):
        loss = loss + nnf.cross_entropy(heads[name][there], wanted[name][there])
    for name in ("position", "radius", "speed"):
        loss = loss + 0.3 * nnf.mse_loss(heads[name][there], wanted[name][there])
    return loss + 0.3 * nnf.mse_loss(heads["shade"], wanted["shade"])


def _soften(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Add blur, brightness changes and noise as they occur in samples, with random strengths per
    video.
    """
    count = len(videos)
    u = torch.rand(4, count, 1, 1, 1, 1, generator=generator)
    sigma = 0.05 + 1.45 * u[0].view(count, 1)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4).view(1, 7) / sigma) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    flat = videos.flatten(1, 2)
    flat = flat.reshape(1, -1, *flat.shape[-2:])  # one depthwise group per video and channel
    weight = taps.repeat_interleave(flat.shape[1] // count, 0)[:, None]
    for kernel, pad in (
        (weight[:, :, None, :], (3, 3, 0, 0)),
        (weight[:, :, :, None], (0, 0, 3, 3)),
    ):
        flat = nnf.conv2d(nnf.pad(flat, pad, mode="replicate"), kernel, groups=flat.shape[1])
    noise = torch.randn(videos.shape, generator=generator)
    return flat.view_as(videos) * (0.9 + 0.2 * u[1]) + 0.2 * (u[2] - 0.5) + 0.06 * u[3] * noise


def _truth(count: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    scene = world.sample_scene(world.draw_captions(count, generator), generator)
    empty = torch.rand(count, 1, generator=generator) < EMPTY_SHARE  # samples may lack an object
    scene = dataclasses.replace(
        scene, present=scene.present & ~(empty & torch.tensor([[True, False]]))
    )
    return world.render(scene), targets(scene)


@torch.no_grad()
def reconstructions(
    work: Path, vae: AutoencoderKLCogVideoX, seed: int, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruct ground-truth videos with the autoencoder, or read those cached in `work`.

    Args:
        work: Folder of the training.
        vae: The trained autoencoder.
        seed: Seed of the videos.
        count: Number of videos N.

    Returns:
        Videos, uint8 [N, 3, F, H, W], and their targets.
    """
    path = work / "judge_pool.safetensors"
    if not path.exists():
        generator, device = torch.Generator().manual_seed(seed), next(vae.parameters()).device
        videos, wanted = _truth(count, generator)
        parts = []
        for x in tqdm(videos.split(8), desc="reconstructions"):
            with torch.autocast(device.type, torch.bfloat16):
                parts.append(
                    vae.decode(vae.encode(x.to(device)).latent_dist.mode()).sample.float().cpu()
                )
        pixels = (torch.cat(parts).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        save_file({"videos": pixels, **wanted}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    pool = load_file(path)
    return pool.pop("videos"), pool


def draw_batch(
    step: int, pool: tuple[Tensor, dict[str, Tensor]], seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the softened videos of a step and their targets: half new ground truth, half
    reconstructions.

    Args:
        step: The step.
        pool: Reconstructions and their targets.
        seed: Seed of the data.

    Returns:
        Videos [`BATCH`, 3, F, H, W] in [-1, 1], and their targets.
    """
    generator = torch.Generator().manual_seed(seed * 3_000_017 + step)
    videos, wanted = _truth(BATCH // 2, generator)
    pick = torch.randint(len(pool[0]), (BATCH // 2,), generator=generator)
    videos = torch.cat([videos, pool[0][pick] / 127.5 - 1])
    return _soften(videos, generator), {
        name: torch.cat([wanted[name], pool[1][name][pick]]) for name in wanted
    }


def train_judge(
    work: Path, vae: AutoencoderKLCogVideoX, *, iterations: int, device: str, seed: int = 5
) -> Judge:
    """Train the judge, or resume its training, and write its weights in float16 to `WEIGHTS`.

    Args:
        work: Folder of the training.
        vae: The trained autoencoder.
        iterations: Number of iterations.
        device: Device to train on.
        seed: Seed of weights and data.

    Returns:
        The judge.
    """
    torch.manual_seed(seed)
    judge = Judge().to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=1e-2)
    pool = reconstructions(work, vae.to(device), seed, POOL)
    start = load(work / "judge.pt", judge, optimizer)
    bar, saved = (
        tqdm(
            range(start, iterations), initial=start, total=iterations, desc="judge", mininterval=2
        ),
        time.time(),
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, iterations, WARMUP)
        videos, wanted = draw_batch(step, pool, seed)
        heads = judge.train()(videos.to(device))[1]
        loss = judge_loss(heads, {name: value.to(device) for name, value in wanted.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if time.time() - saved > 60:
            save(work / "judge.pt", judge, optimizer, step + 1)
            saved = time.time()
    save(work / "judge.pt", judge, optimizer, iterations)
    half = {k: v.half() if v.is_floating_point() else v for k, v in judge.state_dict().items()}
    save_file({k: v.cpu().contiguous() for k, v in half.items()}, WEIGHTS)
    WEIGHTS.chmod(0o644)
    return judge.eval().requires_grad_(False)
