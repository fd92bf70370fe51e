"""Count what a run downloads and what it writes to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..backbones.dtype import torch_dtype
from ..backbones.registry import published_bytes
from ..config import RunConfig
from ..config.resources import find_model
from ..data.latents import real_files
from .counts import bytes_per_value
from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Disk space of a run in bytes."""

    download: float
    """Teacher weights to download; 0 if they are in a local folder."""
    listed: bool
    """Whether the teacher's repository lists the sizes. Otherwise they are computed for the run's
    dtype.
    """
    embeddings: float
    """Embeddings of the prompts."""
    images: float
    """Conditions of the given images; 0 for a model without images."""
    real: float
    """Latents of the real videos or images; 0 without a discriminator."""
    checkpoints: float
    """All checkpoints that are kept, including the best one, and the one being written."""
    export: float

    @property
    def written(self) -> float:
        """Bytes that the run writes."""
        return self.embeddings + self.images + self.real + self.checkpoints + self.export

    @property
    def total(self) -> float:
        """Bytes that the run downloads and writes."""
        return self.download + self.written


def count_storage(plan: Plan) -> Storage:
    """Count the disk space that a run needs. Asks the Hugging Face Hub for the size of a teacher
    that is not local.

    Args:
        plan: Plan of the run.

    Returns:
        Bytes by purpose.
    """
    config, weights, pipeline = plan.config, plan.weights, plan.pipeline
    download, listed = 0.0, True
    if not Path(find_model(config.model.path)).is_dir():
        published = published_bytes(config.model, plan.folder)
        listed = published is not None
        download = published or float(plan.whole + pipeline.text + pipeline.vae)
    several = config.log.checkpoint_every or config.keeps_best
    kept = config.log.keep_checkpoints + 1 if several else 1
    kept += config.keeps_best
    latent_bytes = pipeline.latent * bytes_per_value(torch_dtype(config.model))
    students = len(config.objective.step_set) or 1
    copies = 2 if config.model.adapters and config.trains_lora else 1  # with the user's LoRAs
    return Storage(
        download=download,
        listed=listed,
        embeddings=float(plan.prompts * pipeline.embedding),
        images=float(plan.prompts * pipeline.image),
        real=float(_real_samples(config) * latent_bytes),
        checkpoints=float(kept * plan.state),
        export=4.0 * weights.trainable * students * copies,
    )


def _real_samples(config: RunConfig) -> int:
    """Return the number of real videos or images that are encoded."""
    if "discriminator" not in config.objective.roles:
        return 0
    return len(real_files(config.real, frames=config.video.frames))
