"""What a run prepares before it trains: embeddings of its prompts, latents of its real clips."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from ..adapters.lora import in_host_memory
from ..backbones.base import Backbone
from ..config import RunConfig
from ..data.embeddings import PATIENCE, EmbeddingCache, embed_prompts
from ..data.latents import RealLatents
from ..data.prompts import read_training_prompts
from ..data.video import read_clip
from ..parallel import launch


def embeddings(
    config: RunConfig, backbone: Backbone, world: launch.World
) -> tuple[EmbeddingCache, list[str]]:
    """The cache with every prompt of the run in it, and the training prompts; the text encoder is
    gone afterwards.
    """
    prompts = read_training_prompts(config.prompts)
    launch.check_same("file of prompts", {"prompts.path": digest("prompts", prompts)})
    root, key = Path(config.prompts.cache), backbone.text_fingerprint()
    if world.primary:
        with in_host_memory(
            [backbone.network]
        ):  # so that base and text encoder are not on the device together
            embed_prompts(
                EmbeddingCache(root, key),
                ["", *prompts, *config.log.sample_prompts],
                backbone.encode_prompts,
                each=lambda: launch.all_agree(False),
            )
            backbone.release_text()
    while not launch.all_agree(
        True
    ):  # the others answer after each shard: a wait for all of them would outlast the timeout
        pass
    cache = EmbeddingCache(root, key)
    if missing := cache.missing(["", *prompts, *config.log.sample_prompts], patience=PATIENCE):
        raise ValueError(
            f"prompts.cache={config.prompts.cache!r} lacks {len(missing)} prompts that another rank"
            " embedded: it must be a folder that all machines share"
        )
    return cache, prompts


def real_latents(config: RunConfig, backbone: Backbone, world: launch.World) -> RealLatents:
    """The real clips, encoded; every rank has encoded its share of what the cache lacked."""
    size = config.video
    real = RealLatents(config.real, backbone.video_fingerprint(), frames=size.frames)
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
        some = (
            f"{len(failed)} clips cannot be used"
            f" ({'; '.join(str(error) for error in list(failed.values())[:3])})"
        )
        some = some if failed else "another rank found clips that cannot be used and names them"
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
