"""Prepare the data of a run: embeddings of prompts and images, and latents of real clips."""

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
from ..data.items import Item, file_digest, read_run_items
from ..data.latents import RealLatents, note_unread
from ..data.video import read_clip
from ..parallel import collectives, launch


def prepare_embeddings(
    config: RunConfig, backbone: Backbone, world: launch.World
) -> tuple[Conditions, list[Item]]:
    """Embed all prompts, and all images if the model takes images, that the cache lacks.

    The encoders are released afterwards.

    Args:
        config: Settings of the run.
        backbone: The teacher's model family with its encoders.
        world: Processes of the run.

    Returns:
        The cached conditions and the training items.

    Raises:
        ValueError: Ranks have different prompts, or do not share the cache.
    """
    items, shown = read_run_items(config, takes_images=backbone.takes_images)
    prompts = [item.prompt for item in items]
    collectives.check_same("file of prompts", {"prompts.path": digest("prompts", prompts)})
    needed = ["", config.prompts.negative, *prompts, *(item.prompt for item in shown)]
    # Only rank 0 runs the encoders, so its fingerprint of their files counts.
    key = collectives.broadcast_from_rank0(backbone.text_fingerprint() if world.primary else "")
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
    """Encode the first frames that the cache lacks, and the blank image that a discriminator needs.

    Returns:
        The cache, and the key of each file.
    """
    files = list(dict.fromkeys(item.image for item in items if item.image is not None))
    found = collectives.broadcast_from_rank0(
        ([file_digest(file) for file in files], backbone.image_fingerprint())
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
    """Return a cache with all needed conditions. Rank 0 encodes those that are missing.

    Args:
        key: Fingerprint of the encoder.
        embed: Called with the cache and with a function to call after each shard.

    Raises:
        ValueError: Another rank does not see what rank 0 has written.
    """
    root = Path(config.prompts.cache)
    if world.primary:
        # The device may be too small for the base and an encoder, so the base is offloaded.
        with in_host_memory([backbone.network]):
            embed(EmbeddingCache(root, key), lambda: collectives.all_agree(False))
    # The other ranks synchronize after each shard, because a single wait could exceed the timeout.
    while not collectives.all_agree(True):
        pass
    cache = EmbeddingCache(root, key)
    if missing := cache.missing(needed, patience=PATIENCE):
        raise ValueError(
            f"prompts.cache={config.prompts.cache!r} lacks {len(missing)} embeddings that rank 0"
            " wrote: choose a folder that all machines share"
        )
    return cache


def prepare_latents(config: RunConfig, backbone: Backbone, world: launch.World) -> RealLatents:
    """Encode the real clips that the cache lacks. Each rank encodes its share.

    Args:
        config: Settings of the run.
        backbone: The teacher's model family with its autoencoder.
        world: Processes of the run.

    Returns:
        The latents of all clips.

    Raises:
        ValueError: Clips cannot be used, or ranks do not share the cache.
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
        meet=collectives.barrier,
        progress=world.primary,
    )
    backbone.release_vae()
    if not collectives.all_agree(not failed):
        reasons = "; ".join(str(error) for error in list(failed.values())[:3])
        some = (
            f"{len(failed)} clips cannot be used ({reasons})"
            if failed
            else "another rank found clips that cannot be used; see its message"
        )
        raise ValueError(
            f"real.path={config.real.path!r}: {some}: remove them from the folder and start again;"
            " all other clips are encoded"
        )
    if missing := real.missing(patience=PATIENCE):
        raise ValueError(
            f"real.cache={config.real.cache!r} lacks {missing} clips that other ranks encoded:"
            " choose folders for real.path and real.cache that all machines share"
        )
    return real


def digest(what: str, names: list[str]) -> str:
    """Describe a list by its length and a hash.

    Args:
        what: What the list contains, in the plural.
        names: The list.

    Returns:
        Text such as "100 prompts, sha256 0123456789abcdef".
    """
    return (
        f"{len(names)} {what}, sha256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}"
    )
