"""Train the miniature AutoencoderKLCogVideoX on the shapes world.

Loss: L1 + MSE of pixels plus a small KL term; AdamW with warm-up and cosine decay. Data is drawn on
the fly from a generator seeded with (seed, step), so a resumed run sees exactly the same data as an
uninterrupted one.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from tqdm import tqdm

from tdmvid.shapes import world

from .checkpoint import load, save

BATCH, LR, DECODER_LR, WARMUP, KL_WEIGHT = 4, 1e-3, 5e-4, 300, 1e-4


def build_vae() -> AutoencoderKLCogVideoX:
    """Build the autoencoder: 9 x 64 x 64 pixels <-> 3 x 8 x 8 latents with 16 channels, 1.4M
    parameters.

    Returns:
        The autoencoder.
    """
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(16, 32, 32, 48),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_height=world.SIZE,
        sample_width=world.SIZE,
        temporal_compression_ratio=4,
    )


def videos_for(step: int, batch: int, seed: int) -> tuple[list, Tensor]:
    """Draw the captions and videos of a training step.

    Args:
        step: The step.
        batch: Number of videos B.
        seed: Seed of the training.

    Returns:
        Objects of each caption, and videos [B, 3, F, H, W] in [-1, 1].
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    things = world.draw_captions(batch, generator)
    return things, world.draw_videos(things, generator)


def schedule(step: int, iterations: int, warmup: int) -> float:
    """Return the learning rate factor: linear warm-up, then cosine decay to zero.

    Args:
        step: The step.
        iterations: Number of steps.
        warmup: Steps of the warm-up.

    Returns:
        A factor in [0, 1].
    """
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / iterations)))


@torch.no_grad()
def psnr(vae: AutoencoderKLCogVideoX, count: int = 64, seed: int = 77) -> float:
    """Return the mean peak signal-to-noise ratio of reconstructions of held-out videos.

    Args:
        vae: The autoencoder.
        count: Number of videos.
        seed: Seed of captions and videos.

    Returns:
        PSNR in dB.
    """
    generator = torch.Generator().manual_seed(seed)
    videos = world.draw_videos(world.draw_captions(count, generator, test=True), generator)
    device = next(vae.parameters()).device
    total = 0.0
    for x in videos.split(8):
        x = x.to(device)
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
        mse = ((y - x) / 2).square().flatten(1).mean(1)
        total += (-10 * mse.log10()).sum().item()
    return total / count


def train_vae(work: Path, *, iterations: int, device: str, seed: int = 1) -> AutoencoderKLCogVideoX:
    """Train the autoencoder, or resume its training, and store the measured latent scale in its
    config.

    Args:
        work: Folder of the training.
        iterations: Number of iterations.
        device: Device to train on.
        seed: Seed of weights and data.

    Returns:
        The autoencoder.

    Raises:
        RuntimeError: A gradient is not finite.
    """
    torch.manual_seed(seed)
    vae = build_vae().to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LR, betas=(0.9, 0.99), weight_decay=0.0)
    start = load(work / "vae.pt", vae, optimizer)
    bar, saved = (
        tqdm(range(start, iterations), initial=start, total=iterations, desc="vae"),
        time.time(),
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step, iterations, WARMUP)
        x = videos_for(step, BATCH, seed)[1].to(device)
        generator = torch.Generator(device).manual_seed(seed * 7_000_003 + step)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample(generator)).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = (y - x).abs().mean() + (y - x).square().mean() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise RuntimeError(f"vae: gradient norm {norm.item()} at step {step}: lower LR ({LR})")
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", kl=f"{kl.item():.2f}")
        if step % 1000 == 999:
            tqdm.write(f"vae step {step + 1}: {psnr(vae):.2f} dB")
        if time.time() - saved > 120:
            save(work / "vae.pt", vae, optimizer, step + 1)
            saved = time.time()
    save(work / "vae.pt", vae, optimizer, iterations)
    _measure_scale(vae, seed)
    return vae.eval().requires_grad_(False)


def refine_decoder(
    work: Path, vae: AutoencoderKLCogVideoX, *, iterations: int, device: str, seed: int = 3
) -> None:
    """Continue training the decoder alone in place, or resume it. The latents do not change.

    Args:
        work: Folder of the training.
        vae: The trained autoencoder.
        iterations: Number of iterations.
        device: Device to train on.
        seed: Seed of the data.
    """
    vae = vae.to(device)
    vae.encoder.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        vae.decoder.parameters(), lr=DECODER_LR, betas=(0.9, 0.99), weight_decay=0.0
    )
    start = load(work / "decoder.pt", vae.decoder, optimizer)
    bar, saved = (
        tqdm(
            range(start, iterations), initial=start, total=iterations, desc="decoder", mininterval=5
        ),
        time.time(),
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = DECODER_LR * schedule(step, iterations, WARMUP)
        x = videos_for(step, BATCH, seed)[1].to(device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.mode()
            y = vae.decode(latents).sample.float()
        loss = (y - x).abs().mean() + 4 * (y - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 499:
            tqdm.write(f"decoder step {step + 1}: {psnr(vae):.2f} dB")
        if time.time() - saved > 120:
            save(work / "decoder.pt", vae.decoder, optimizer, step + 1)
            saved = time.time()
    save(work / "decoder.pt", vae.decoder, optimizer, iterations)
    vae.eval().requires_grad_(False)


@torch.no_grad()
def _measure_scale(vae: AutoencoderKLCogVideoX, seed: int) -> None:
    device = next(vae.parameters()).device
    latents = vae.encode(videos_for(10**6, 256, seed)[1].to(device)).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
