"""What a run prepares before it trains: conditions of prompts and images, latents of real clips."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..adapters.lora import in_host_memory
from ..backbones.base import Backbone
from ..backbones.encoded_images import embed_images
from ..backbones.text_limit import without_warnings
from ..config import RunConfig
from ..data.conditions import BLANK, Conditions
from ..data.embeddings import PATIENCE, EmbeddingCache, embed_prompts
from ..data.items import Item, image_digest, read_run_items
from ..data.latents import RealLatents, note_unread
from ..data.video import read_clip
from ..parallel import launch


def prepare_embeddings(
    config: RunConfig, backbone: Backbone, world: launch.World
) -> tuple[Conditions, list[Item]]:
    """Embed every prompt of a run that the cache lacks, and every image where the model takes one;
    release what encoded them.

    Returns:
        The cached conditions and the training items.

    Raises:
        ValueError: If ranks have other prompts, or do not share the cache.
    """
    items, shown = read_run_items(config, takes_images=backbone.takes_images)
    prompts = [item.prompt for item in items]
    launch.check_same("file of prompts", {"prompts.path": digest("prompts", prompts)})
    needed = ["", config.prompts.negative, *prompts, *(item.prompt for item in shown)]
    # One rank reads the files of its encoders: no other uses its own.
    key = launch.broadcast_from_rank0(backbone.text_fingerprint() if world.primary else "")
    if world.primary and (note := backbone.find_cut_prompts(prompts).note(prompts)):
        print(f"prompts.path={config.prompts.path!r}: {note}", file=sys.stderr)

    def embed(cache: EmbeddingCache, each: Callable[[], object]) -> None:
        with without_warnings():
            embed_prompts(cache, needed, backbone.encode_prompts, each=each)
        backbone.release_text()

    texts = _fill(config, backbone, world, key, needed, embed)
    if not backbone.takes_images:
        return Conditions(texts), items
    images, digests = _prepare_images(config, backbone, world, [*items, *shown])
    return Conditions(texts, images, digests), items


def _prepare_images(
    config: RunConfig, backbone: Backbone, world: launch.World, items: list[Item]
) -> tuple[EmbeddingCache, dict[Path, str]]:
    """Encode the first frames that the cache lacks, and the blank one of a discriminator.

    Returns:
        The cache, and the key of each file.
    """
    files = list(dict.fromkeys(item.image for item in items if item.image is not None))
    found = launch.broadcast_from_rank0(
        ([image_digest(file) for file in files], backbone.image_fingerprint())
        if world.primary
        else None
    )
    keys, key = found

    def embed(cache: EmbeddingCache, each: Callable[[], object]) -> None:
        embed_images(cache, dict(zip(keys, files, strict=True)), backbone, blank=True, each=each)

    cache = _fill(config, backbone, world, key, [BLANK, *keys], embed)
    return cache, dict(zip(files, keys, strict=True))


def _fill(
    config: RunConfig,
    backbone: Backbone,
    world: launch.World,
    key: str,
    needed: list[str],
    embed: Callable[[EmbeddingCache, Callable[[], object]], None],
) -> EmbeddingCache:
    """Return a cache with all that is needed; the first rank embeds what it lacks.

    Args:
        key: of the encoder.
        embed: called with the cache, and with what to call after each shard.

    Raises:
        ValueError: If another rank does not see what was written.
    """
    root = Path(config.prompts.cache)
    if world.primary:
        # The base is offloaded: the device may not hold it beside an encoder.
        with in_host_memory([backbone.network]):
            embed(EmbeddingCache(root, key), lambda: launch.all_agree(False))
    # The others answer after each shard: one wait for all of them would outlast the timeout.
    while not launch.all_agree(True):
        pass
    cache = EmbeddingCache(root, key)
    if missing := cache.missing(needed, patience=PATIENCE):
        raise ValueError(
            f"prompts.cache={config.prompts.cache!r} lacks {len(missing)} conditions that another"
            " rank embedded: it must be a folder that all machines share"
        )
    return cache


def prepare_latents(config: RunConfig, backbone: Backbone, world: launch.World) -> RealLatents:
    """Encode the real clips that the cache lacks, every rank its share.

    Raises:
        ValueError: For clips that cannot be used, or if ranks do not share the cache.
    """
    size = config.video
    real = RealLatents(config.real, backbone.video_fingerprint(), frames=size.frames)
    if world.primary and (note := note_unread(config.real, frames=size.frames)):
        print(note, file=sys.stderr)
    clip = partial(
        read_clip, frames=size.frames, height=size.height, width=size.width, fps=size.fps
    )
    failed = real.encode(
        clip,
        backbone.encode,
        share=world.rank,
        shares=world.size,
        meet=launch.barrier,
        progress=world.primary,
    )
    backbone.release_vae()
    if not launch.all_agree(not failed):
        reasons = "; ".join(str(error) for error in list(failed.values())[:3])
        some = (
            f"{len(failed)} clips cannot be used ({reasons})"
            if failed
            else "another rank found clips that cannot be used and names them"
        )
        raise ValueError(
            f"real.path={config.real.path!r}: {some}: take them out of the folder; the others are"
            " encoded"
        )
    if missing := real.missing(patience=PATIENCE):
        raise ValueError(
            f"real.cache={config.real.cache!r} lacks {missing} clips that other ranks encoded:"
            " real.path and real.cache must be folders that all machines share"
        )
    return real


def digest(what: str, names: list[str]) -> str:
    """Return how many names there are, and a hash of them in their order."""
    return (
        f"{len(names)} {what}, sha256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"
    )
