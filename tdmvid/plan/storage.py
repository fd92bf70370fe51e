"""What a run downloads, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..backbones.registry import published_bytes
from ..config.resources import find_model
from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes on disk."""

    download: float
    """Of the teacher's weights; 0 if they are in a folder here."""
    listed: bool
    """Whether its repository says so; else it is counted in the run's dtype."""
    embeddings: float
    checkpoints: float
    """Those that are kept, the best one among them, and the one that is written meanwhile."""
    export: float

    @property
    def written(self) -> float:
        return self.embeddings + self.checkpoints + self.export

    @property
    def total(self) -> float:
        return self.download + self.written


def count_storage(plan: Plan) -> Storage:
    """Count what a run needs on disk; ask the hub how large a teacher is that it would fetch."""
    config, weights, pipeline = plan.config, plan.weights, plan.pipeline
    download, listed = 0.0, True
    if not Path(find_model(config.model.path)).is_dir():
        published = published_bytes(config.model, plan.folder)
        listed = published is not None
        download = published or float(plan.whole + pipeline.text + pipeline.vae)
    state = 3 * 4 * weights.trained + (4 * weights.trainable if config.ema else 0)
    kept = config.log.keep_checkpoints + 1 if config.log.checkpoint_every else 1
    kept += config.keeps_best
    return Storage(
        download=download,
        listed=listed,
        embeddings=float(plan.prompts * pipeline.embedding),
        checkpoints=float(kept * state),
        export=4.0 * weights.trainable,
    )
