"""What a run prepares before it trains: embeddings of its prompts, latents of its real clips."""

from __future__ import annotations

import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from ..adapters.lora import in_host_memory
from ..backbones.base import Backbone
from ..backbones.text_limit import without_warnings
from ..config import RunConfig
from ..data.embeddings import PATIENCE, EmbeddingCache, embed_prompts
from ..data.latents import RealLatents, note_unread
from ..data.prompts import read_training_prompts
from ..data.video import read_clip
from ..parallel import launch


def prepare_embeddings(
    config: RunConfig, backbone: Backbone, world: launch.World
) -> tuple[EmbeddingCache, list[str]]:
    """Embed every prompt of a run that the cache lacks, and release the text encoder.

    Returns:
        The cache and the training prompts.

    Raises:
        ValueError: If ranks have other prompts, or do not share the cache.
    """
    prompts = read_training_prompts(config.prompts)
    launch.check_same("file of prompts", {"prompts.path": digest("prompts", prompts)})
    needed = ["", config.prompts.negative, *prompts, *config.log.sample_prompts]
    root = Path(config.prompts.cache)
    # One rank reads the files of its text encoder: no other uses its own.
    key = launch.broadcast_from_rank0(backbone.text_fingerprint() if world.primary else "")
    if world.primary:
        if note := backbone.find_cut_prompts(prompts).note(prompts):
            print(f"prompts.path={config.prompts.path!r}: {note}", file=sys.stderr)
        # The base is offloaded: the device may not hold it beside the text encoder.
        with in_host_memory([backbone.network]), without_warnings():
            embed_prompts(
                EmbeddingCache(root, key),
                needed,
                backbone.encode_prompts,
                each=lambda: launch.all_agree(False),
            )
            backbone.release_text()
    # The others answer after each shard: one wait for all of them would outlast the timeout.
    while not launch.all_agree(True):
        pass
    cache = EmbeddingCache(root, key)
    if missing := cache.missing(needed, patience=PATIENCE):
        raise ValueError(
            f"prompts.cache={config.prompts.cache!r} lacks {len(missing)} prompts that another rank"
            " embedded: it must be a folder that all machines share"
        )
    return cache, prompts


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
