"""Fine-tune the embedded teacher to start from a given first frame.

The input projection gets 16 channels more, with zero weights, for the latents of the first frame;
later frames get zeros there, as in CogVideoX-5B-I2V. A LoRA of the blocks and the projection are
trained; the text encoder and everything else stay as they are. All random numbers of a step come
from a generator seeded with (seed, step), so a resumed run sees the same data as an uninterrupted
one. The exported weights are the moving average.

Shapes: latents [B, F=3, C=16, H=8, W=8], scaled to unit variance; embeddings [B, 16, 128].
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5EncoderModel

from tdmvid.backbones.cogvideox_fused import fuse
from tdmvid.backbones.cogvideox_parallel import set_attention
from tdmvid.shapes import TEACHER, world

from . import text
from .checkpoint import load, save
from .vae import schedule

WEIGHTS = Path("transformer") / "diffusion_pytorch_model.safetensors"
SHARD = 500  # videos per file of encoded latents
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("norm1.linear", "norm2.linear"),
)


@dataclass(frozen=True)
class Recipe:
    """Settings of the fine-tuning. `videos` ground-truth videos are encoded once."""

    iterations: int = 1200
    batch: int = 16
    videos: int = 2500
    pair_share: float = 0.6  # more pairs than in the world, because they are harder
    rank: int = 32
    lr: float = 1e-3
    warmup: int = 50
    clip: float = 1.0
    drop_caption: float = 0.1
    detail: int = 400  # half of the timesteps are drawn below this one, as for the teacher
    ema: float = 0.99
    seed: int = 21
    save_every_s: float = 20.0


def widen(transformer: CogVideoXTransformer3DModel) -> None:
    """Double the input channels in place; the new ones have zero weights.

    Args:
        transformer: A CogVideoX transformer with spatial patches.
    """
    old = transformer.patch_embed.proj
    new = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
    transformer.patch_embed.proj = new
    transformer.register_to_config(in_channels=new.in_channels)


def build_network(recipe: Recipe) -> CogVideoXTransformer3DModel:
    """Build the widened teacher with a new LoRA.

    Args:
        recipe: Settings.

    Returns:
        The transformer in float32; only the LoRA and the input projection require gradients.
    """
    torch.manual_seed(recipe.seed)
    network = CogVideoXTransformer3DModel.from_pretrained(
        TEACHER, subfolder="transformer", torch_dtype=torch.float32
    )
    widen(network)
    fuse(network)
    set_attention(network, "float32")  # faster on a CPU, see benchmarks/NOTES.md
    network.add_adapter(
        LoraConfig(r=recipe.rank, lora_alpha=recipe.rank, target_modules=list(TARGETS))
    )
    network.patch_embed.proj.requires_grad_(True)
    return network


def trained_part(network: CogVideoXTransformer3DModel) -> dict[str, Tensor]:
    """Return what `write_folder` adds to the teacher.

    Args:
        network: Result of `build_network`.

    Returns:
        Tensors by name in float16: the input projection, and the LoRA as NAME.lora_A.weight and
        NAME.lora_B.weight of each changed layer, with scale 1.
    """
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    return {
        name.replace(".default.", "."): value.detach().half().cpu().contiguous()
        for name, value in named.items()
    }


@torch.no_grad()
def encode_videos(work: Path, recipe: Recipe, *, device: str) -> dict[str, Tensor]:
    """Encode training videos, their first frames and captions, cached in files of `SHARD` videos.

    Args:
        work: Folder of the training.
        recipe: Settings.
        device: Device to encode on.

    Returns:
        "latents" [N, 3, 16, 8, 8], "first" [N, 16, 8, 8], "text" [N, 16, 128], in float16.
    """
    shards = []
    (work / "image_latents").mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLCogVideoX.from_pretrained(TEACHER, subfolder="vae").float().to(device)
    encoder = T5EncoderModel.from_pretrained(TEACHER, subfolder="text_encoder").float().to(device)
    for index in tqdm(range(-(-recipe.videos // SHARD)), desc="latents of videos and frames"):
        path = work / "image_latents" / f"{index:04d}.safetensors"
        if not path.exists():
            generator = torch.Generator().manual_seed(recipe.seed * 5_000_011 + index)
            things = world.draw_captions(SHARD, generator, pair_share=recipe.pair_share)
            parts = []
            for start in range(0, SHARD, 10):
                videos = world.draw_videos(things[start : start + 10], generator).to(device)
                parts.append((_encode(vae, videos), _encode(vae, videos[:, :, :1])[:, 0]))
            ids = text.token_ids(text.build_tokenizer(), [world.caption(t) for t in things])
            made = {
                "latents": torch.cat([p[0] for p in parts]),
                "first": torch.cat([p[1] for p in parts]),
                "text": text.encode(encoder, ids.to(device)).half().cpu(),
            }
            aside = path.with_suffix(".part")
            save_file({name: value.contiguous() for name, value in made.items()}, aside)
            aside.replace(path)
        shards.append(load_file(path))
    data = {name: torch.cat([s[name] for s in shards])[: recipe.videos] for name in shards[0]}
    nothing = torch.zeros(1, text.MAX_LENGTH, dtype=torch.long)
    nothing[:, 0] = 1  # "" is the end token, then padding
    data["empty"] = text.encode(encoder, nothing.to(device)).half().cpu()
    return {name: value.to(device) for name, value in data.items()}


def _encode(vae: AutoencoderKLCogVideoX, videos: Tensor) -> Tensor:
    with torch.autocast(videos.device.type, torch.bfloat16):
        latents = vae.encode(videos).latent_dist.mode()
    return (latents.float() * vae.config.scaling_factor).transpose(1, 2).half().cpu()


def _loss(
    network: CogVideoXTransformer3DModel,
    scheduler: CogVideoXDDIMScheduler,
    data: dict[str, Tensor],
    step: int,
    recipe: Recipe,
) -> Tensor:
    """Return the squared error of v on the batch of a step."""
    generator = torch.Generator().manual_seed(recipe.seed * 9_000_011 + step)
    count = recipe.batch
    pick = torch.randint(len(data["latents"]), (count,), generator=generator)
    stratum = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    reach = torch.where(torch.arange(count) % 2 == 0, 1000, recipe.detail)
    t = (reach * stratum).long().clamp(max=999)  # stratified sampling reduces gradient noise
    empty = torch.rand(count, 1, 1, generator=generator) < recipe.drop_caption
    eps = torch.randn(count, *data["latents"].shape[1:], generator=generator)
    device = data["latents"].device
    pick, t, empty, eps = (part.to(device) for part in (pick, t, empty, eps))
    x0, first = data["latents"][pick].float(), data["first"][pick].float()[:, None]
    embeddings = torch.where(empty, data["empty"], data["text"][pick]).float()
    given = torch.cat([first, torch.zeros_like(x0[:, 1:])], 1)
    x_t = scheduler.add_noise(x0, eps, t)
    with torch.autocast(device.type, torch.bfloat16):
        v = network(torch.cat([x_t, given], 2), embeddings, t).sample
    return (v.float() - scheduler.get_velocity(x0, eps, t)).square().mean()


@torch.no_grad()
def _follow(average: list[Tensor], live: list[Tensor], step: int, decay: float) -> None:
    torch._foreach_lerp_(average, live, 1 - min(decay, (1 + step) / (10 + step)))


def write_folder(folder: Path, part: dict[str, Tensor]) -> None:
    """Write the image-to-video teacher as a `CogVideoXImageToVideoPipeline` folder, atomically.

    Args:
        folder: Folder to write.
        part: Result of `trained_part`.
    """
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(TEACHER, aside, ignore=shutil.ignore_patterns("quality.json", "made.json"))
    weights = load_file(aside / WEIGHTS)
    for name, value in part.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            own, up = weights[f"{layer}.weight"], part[f"{layer}.lora_B.weight"]
            weights[f"{layer}.weight"] = (own + up.double() @ value.double()).to(own.dtype)
        elif not name.endswith(".lora_B.weight"):
            weights[name] = value.cpu()
    save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
    channels = weights["patch_embed.proj.weight"].shape[1]
    _change(aside / "transformer" / "config.json", in_channels=channels)
    _change(aside / "model_index.json", _class_name="CogVideoXImageToVideoPipeline")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _change(path: Path, **settings: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings, indent=2) + "\n")


def train_image_teacher(work: Path, out: Path, recipe: Recipe, *, device: str) -> None:
    """Fine-tune the teacher, or resume, and write the pipeline folder.

    Args:
        work: Folder of the training; the state is in `work/image.pt`.
        out: Folder of the pipeline.
        recipe: Settings.
        device: Device to train on.

    Raises:
        RuntimeError: A gradient is not finite.
    """
    data = encode_videos(work, recipe, device=device)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(TEACHER, subfolder="scheduler")
    live = build_network(recipe)
    states = nn.ModuleDict({"live": live, "average": copy.deepcopy(live)}).to(device)
    mine = [p for p in states["live"].parameters() if p.requires_grad]
    mean = [p for p in states["average"].parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(mine, lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.0)
    start = load(work / "image.pt", states, optimizer)
    bar = tqdm(range(start, recipe.iterations), initial=start, total=recipe.iterations)
    saved, recent = time.time(), None
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * schedule(step, recipe.iterations, recipe.warmup)
        loss = _loss(states["live"], scheduler, data, step, recipe)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(mine, recipe.clip)
        if not torch.isfinite(norm):
            raise RuntimeError(
                f"image teacher: gradient norm {norm.item()} at step {step}: lower lr ({recipe.lr})"
            )
        optimizer.step()
        _follow(mean, mine, step, recipe.ema)
        recent = loss.detach() if recent is None else recent.lerp(loss.detach(), 0.02)
        if step % 100 == 99:
            tqdm.write(f"image teacher step {step + 1}: loss {recent.item():.4f}")
        if time.time() - saved > recipe.save_every_s:
            save(work / "image.pt", states, optimizer, step + 1)
            saved = time.time()
    save(work / "image.pt", states, optimizer, recipe.iterations)
    write_folder(out, trained_part(states["average"]))
