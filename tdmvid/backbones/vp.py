"""Shared code of the variance-preserving families, whichever scheduler their folder names.

Shapes: B batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from ..config import ClipSize, ModelConfig
from ..diffusion.grid import TimeGrid
from ..diffusion.process import TabulatedVP
from .pipeline import PipelineBackbone
from .scheduler import clean_sample, scheduler_for
from .spec import FamilySpec


class VPSpec(FamilySpec):
    """Describes a family whose scheduler has a table of betas."""

    ddim_class: ClassVar[Any] = DDIMScheduler

    def read_scheduler(self, folder: Path) -> Any:
        """Return a deterministic DDIM scheduler with the teacher's betas and prediction type.

        Its spacing is trailing, and the last step returns the predicted x0 itself.

        Args:
            folder: The pipeline folder.

        Raises:
            ValueError: The teacher's scheduler has no betas, or combines epsilon prediction with
                zero terminal SNR (arXiv 2305.08891).
        """
        config = self.ddim_class.load_config(folder, subfolder="scheduler")
        if "beta_schedule" not in config:
            raise ValueError(
                f"{folder}: {config.get('_class_name')} has no beta_schedule; this family needs a"
                " scheduler with a table of betas, such as DDIMScheduler"
            )
        # The last step returns the predicted x0 itself, not a sample at the table's first entry.
        # Nothing is clipped.
        scheduler = self.ddim_class.from_config(
            config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
        if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] <= 0:
            raise ValueError(
                f"{folder}: prediction_type='epsilon' cannot predict x0 at zero terminal SNR: set"
                " rescale_betas_zero_snr to false in scheduler/scheduler_config.json"
            )
        return scheduler

    def read_process(self, folder: Path) -> TabulatedVP:
        """Return the process with the table of the teacher's scheduler."""
        return TabulatedVP(self.read_scheduler(folder).alphas_cumprod)


class VPBackbone(PipelineBackbone):
    """Backbone of a variance-preserving teacher."""

    spec: ClassVar[VPSpec]
    process: TabulatedVP

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self.prediction_type = self.spec.read_scheduler(folder).config.prediction_type

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return x0 [B, ...] float32 from the network's output, by its prediction type."""
        return clean_sample(self.prediction_type, x_t, out, *self.process.levels(t, x_t))

    def student_scheduler(self, grid: TimeGrid) -> SchedulerMixin:
        """Return diffusers' DDIM scheduler or a TrajectoryScheduler over `grid`."""
        return scheduler_for(grid, self.process, self.spec.read_scheduler(self.folder))
