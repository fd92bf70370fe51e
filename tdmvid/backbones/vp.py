"""What families of a variance-preserving process share, whichever scheduler their folder names.

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
    """A family whose scheduler has a table of betas."""

    ddim_class: ClassVar[Any] = DDIMScheduler

    def read_scheduler(self, folder: Path) -> Any:
        """Return deterministic DDIM with the betas and the prediction type of the teacher's
        scheduler, and trailing spacing.

        Raises:
            ValueError: it has no betas, or says that an epsilon network starts from pure noise.
        """
        config = self.ddim_class.load_config(folder, subfolder="scheduler")
        if "beta_schedule" not in config:
            raise ValueError(
                f"{folder}: {config.get('_class_name')} has no beta_schedule: this family"
                " needs a scheduler of a variance-preserving process"
            )
        # The trajectory ends in the clean prediction itself, not in the first entry of the table,
        # and is never clipped.
        scheduler = self.ddim_class.from_config(
            config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
        if scheduler.config.prediction_type == "epsilon" and scheduler.alphas_cumprod[-1] <= 0:
            raise ValueError(
                f"{folder}: prediction_type='epsilon' has no clean prediction at zero terminal SNR:"
                " set rescale_betas_zero_snr to false"
            )
        return scheduler

    def read_process(self, folder: Path) -> TabulatedVP:
        return TabulatedVP(self.read_scheduler(folder).alphas_cumprod)


class VPBackbone(PipelineBackbone):
    """A teacher of a variance-preserving process."""

    spec: ClassVar[VPSpec]
    process: TabulatedVP

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self.prediction_type = self.spec.read_scheduler(folder).config.prediction_type

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return clean_sample(self.prediction_type, x_t, out, *self.process.levels(t, x_t))

    def student_scheduler(self, grid: TimeGrid) -> SchedulerMixin:
        return scheduler_for(grid, self.process, self.spec.read_scheduler(self.folder))
