"""Train the miniature CogVideoX transformer and its text encoder by denoising.

Loss: mean squared error of v. Half of the timesteps are uniform in 0..999, half in 0..399. All
random numbers of a step come from a generator seeded with (seed, step), so a resumed run sees
exactly the same data as an uninterrupted one. The exported weights are the moving average.

Shapes: latents [B, F=3, C=16, H=8, W=8], scaled to unit variance; token ids [B, 16].
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from tdmvid.shapes import world

from . import text
from .checkpoint import load, save
from .optimizer import MuonAndAdamW, for_transformer
from .vae import schedule

SHARD = 1000  # videos per file of encoded latents


@dataclass(frozen=True)
class Recipe:
    """Settings of the teacher's training. `videos` ground-truth videos are encoded once."""

    iterations: int = 13_300
    text_iterations: int = 600
    batch: int = 64
    videos: int = 20_000
    pair_share: float = 0.6  # more pairs than in the world, because they are harder
    lr: float = 1e-3
    muon_lr: float = 3e-3
    warmup: int = 250
    weight_decay: float = 0.01
    clip: float = 1.0
    binding: float = 0.02  # weight of the text encoder's own loss
    drop_caption: float = 0.1
    detail: int = 400  # half of the timesteps are drawn below this one, where shapes are decided
    ema: float = 0.999
    seed: int = 11
    save_every_s: float = 120.0


def build_scheduler() -> CogVideoXDDIMScheduler:
    """Build the scheduler of THUDM/CogVideoX-2b with all of its settings.

    Returns:
        The scheduler.
    """
    return CogVideoXDDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        sample_max_value=1.0,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
    )


def build_transformer() -> CogVideoXTransformer3DModel:
    """Build a CogVideoX transformer with 7.3M parameters: 6 blocks of width 256 on 16 text and 48
    video tokens.

    Returns:
        The transformer.
    """
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=32,
        in_channels=16,
        out_channels=16,
        time_embed_dim=128,
        text_embed_dim=text.WIDTH,
        num_layers=6,
        sample_width=8,
        sample_height=8,
        sample_frames=world.FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=text.MAX_LENGTH,
        use_rotary_positional_embeddings=False,
    )
    modulations = [
        m
        for block in transformer.transformer_blocks
        for m in (block.norm1.linear, block.norm2.linear)
    ]
    for layer in (
        *modulations,
        transformer.norm_out.linear,
        transformer.proj_out,
    ):  # adaLN-Zero, arXiv 2212.09748
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


class Teacher(nn.Module):
    """Transformer and text encoder, trained together.

    Args:
        vocabulary: Number of text tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.encoder = text.build_encoder(vocabulary)
        self.binding = text.Binding()

    def forward(self, x_t: Tensor, t: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Predict v, and compute the text encoder's own loss.

        Args:
            x_t: Noisy latents [B, F, C, H, W].
            t: Timesteps [B].
            ids: Token ids [B, 16].

        Returns:
            v [B, F, C, H, W], and the loss of `Binding` (scalar).
        """
        embeddings = text.encode(self.encoder, ids)
        return self.transformer(x_t, embeddings, t).sample, self.binding(embeddings, ids)


@torch.no_grad()
def encode_videos(
    work: Path,
    vae: AutoencoderKLCogVideoX,
    count: int,
    *,
    pair_share: float,
    device: str,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Encode training videos and captions, cached in files of `SHARD` videos.

    Args:
        work: Folder of the training.
        vae: The trained autoencoder.
        count: Number of videos N.
        pair_share: Share of captions with two objects.
        device: Device to encode on.
        seed: Seed of captions and videos.

    Returns:
        Latents [N, 3, 16, 8, 8] in float16, and token ids [N, 16].
    """
    tokenizer, shards = text.build_tokenizer(), []
    (work / "latents").mkdir(parents=True, exist_ok=True)
    vae = vae.to(device).eval()
    for index in tqdm(range(-(-count // SHARD)), desc="latents"):
        path = work / "latents" / f"{index:04d}.safetensors"
        if not path.exists():
            generator = torch.Generator().manual_seed(seed * 5_000_011 + index)
            things = world.draw_captions(SHARD, generator, pair_share=pair_share)
            parts = [
                _encode(vae, world.draw_videos(chunk, generator).to(device))
                for chunk in _chunks(things, 8)
            ]
            ids = text.token_ids(tokenizer, [world.caption(t) for t in things])
            aside = path.with_suffix(".part")
            save_file({"latents": torch.cat(parts), "ids": ids}, aside)
            aside.replace(path)
        shards.append(load_file(path))
    return tuple(
        torch.cat([s[name] for s in shards])[:count].to(device) for name in ("latents", "ids")
    )


def _encode(vae: AutoencoderKLCogVideoX, videos: Tensor) -> Tensor:
    with torch.autocast(videos.device.type, torch.bfloat16):
        latents = vae.encode(videos).latent_dist.mode()
    return (latents.float() * vae.config.scaling_factor).transpose(1, 2).half().cpu().contiguous()


def _chunks(things: list, size: int) -> list[list]:
    return [things[i : i + size] for i in range(0, len(things), size)]


@torch.no_grad()
def _follow(average: nn.Module, live: nn.Module, step: int, decay: float) -> None:
    weight = 1 - min(decay, (1 + step) / (10 + step))  # shorter averaging at the start
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), weight)


def _loss(
    model: nn.Module,
    scheduler: CogVideoXDDIMScheduler,
    data: tuple[Tensor, Tensor],
    step: int,
    recipe: Recipe,
) -> Tensor:
    """Return the squared error of v on the batch of a step, plus the weighted loss of `Binding`."""
    generator = torch.Generator().manual_seed(recipe.seed * 9_000_011 + step)
    pick = torch.randint(len(data[0]), (recipe.batch,), generator=generator)
    stratum = (
        torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)
    ) / recipe.batch
    reach = torch.where(torch.arange(recipe.batch) % 2 == 0, 1000, recipe.detail)
    t = (reach * stratum).long().clamp(max=999)  # stratified sampling reduces gradient noise
    empty = torch.rand(recipe.batch, 1, generator=generator) < recipe.drop_caption
    eps = torch.randn(recipe.batch, *data[0].shape[1:], generator=generator)
    device = data[0].device
    pick, t, empty, eps = pick.to(device), t.to(device), empty.to(device), eps.to(device)
    x0, ids = data[0][pick].float(), data[1][pick]
    nothing = torch.zeros_like(ids[:1])
    nothing[:, 0] = 1  # "" is the end token, then padding
    ids = torch.where(empty, nothing, ids)
    with torch.autocast(device.type, torch.bfloat16):
        v, binding = model(scheduler.add_noise(x0, eps, t), t, ids)
    return (
        v.float() - scheduler.get_velocity(x0, eps, t)
    ).square().mean() + recipe.binding * binding


def build_states(
    vocabulary: int, recipe: Recipe, device: str
) -> tuple[nn.ModuleDict, MuonAndAdamW]:
    """Create the trained weights, their moving average, and the optimizer.

    Args:
        vocabulary: Number of text tokens.
        recipe: Settings.
        device: Device to train on.

    Returns:
        "live" and "average" weights, and the optimizer of the former.
    """
    torch.manual_seed(recipe.seed)
    live, average = Teacher(vocabulary), Teacher(vocabulary)
    text.pretrain(live.encoder, live.binding, iterations=recipe.text_iterations, seed=recipe.seed)
    average.load_state_dict(live.state_dict())
    states = nn.ModuleDict({"live": live, "average": average.requires_grad_(False)}).to(device)
    optimizer = for_transformer(
        live, muon_lr=recipe.muon_lr, lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    return states, optimizer


def train_teacher(work: Path, vae: AutoencoderKLCogVideoX, recipe: Recipe, *, device: str) -> None:
    """Train the teacher, or resume its training, and leave the result in `work/teacher.pt`.

    Args:
        work: Folder of the training.
        vae: The trained autoencoder.
        recipe: Settings.
        device: Device to train on.

    Raises:
        RuntimeError: A gradient is not finite.
    """
    data = encode_videos(
        work, vae, recipe.videos, pair_share=recipe.pair_share, device=device, seed=recipe.seed
    )
    scheduler = build_scheduler()
    states, optimizer = build_states(len(text.build_tokenizer()), recipe, device)
    start = load(work / "teacher.pt", states, optimizer)
    bar = tqdm(
        range(start, recipe.iterations),
        initial=start,
        total=recipe.iterations,
        desc="teacher",
        mininterval=5,
    )
    saved, recent = time.time(), None
    for step in bar:
        optimizer.set_lr(schedule(step, recipe.iterations, recipe.warmup))
        loss = _loss(states["live"], scheduler, data, step, recipe)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(states["live"].parameters(), recipe.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"teacher: gradient norm {norm.item()} at step {step}: lower lr ({recipe.lr})"
            )
        optimizer.step()
        _follow(states["average"], states["live"], step, recipe.ema)
        recent = loss.detach() if recent is None else recent.lerp(loss.detach(), 0.02)
        if step % 100 == 99:
            tqdm.write(f"teacher step {step + 1}: loss {recent.item():.4f}")
        if time.time() - saved > recipe.save_every_s:
            save(work / "teacher.pt", states, optimizer, step + 1)
            saved = time.time()
    save(work / "teacher.pt", states, optimizer, recipe.iterations)


def trained(work: Path) -> tuple[Teacher, int]:
    """Load the moving average of the last checkpoint.

    Args:
        work: Folder of the training.

    Returns:
        The teacher, and its number of steps.

    Raises:
        ValueError: There is no checkpoint.
    """
    path = work / "teacher.pt"
    if not path.exists():
        raise ValueError(f"{path} does not exist: run --stage teacher first")
    state = torch.load(path, weights_only=True, map_location="cpu")
    teacher = Teacher(len(text.build_tokenizer()))
    prefix = "average."
    teacher.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)}
    )
    return teacher.eval(), state["step"]
