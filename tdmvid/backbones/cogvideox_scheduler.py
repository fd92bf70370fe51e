"""The student's time grid as a diffusers scheduler, so that a stock pipeline steps exactly as trained.

A uniform grid needs nothing of ours: the stock CogVideoXDDIMScheduler with trailing spacing
has it. CogVideoX's schedulers take no `timesteps=`, so any other grid ships as a
TrajectoryScheduler, whose config holds the timesteps.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim_cogvideox import DDIMSchedulerOutput
from torch import Tensor

from ..diffusion.grid import TimeGrid
from ..diffusion.process import TabulatedVP


class TrajectoryScheduler(CogVideoXDDIMScheduler):
    """Deterministic DDIM over a fixed list of timesteps, e.g. [999, 856, 665, 399].

    `pipe.scheduler = TrajectoryScheduler.from_pretrained(folder)`; sampling with another
    number of steps than the list has is refused.
    """

    @register_to_config
    def __init__(
        self, trajectory: list[int] = (999, 749, 499, 249), num_train_timesteps: int = 1000, beta_start: float = 0.00085,
        beta_end: float = 0.0120, beta_schedule: str = "scaled_linear", trained_betas: list[float] | None = None,
        clip_sample: bool = True, set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0, sample_max_value: float = 1.0, timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False, snr_shift_scale: float = 3.0,
    ):
        super().__init__(
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, clip_sample, set_alpha_to_one,
            steps_offset, prediction_type, clip_sample_range, sample_max_value, timestep_spacing,
            rescale_betas_zero_snr, snr_shift_scale,
        )

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """The fixed list; ValueError for another number of steps."""
        steps = list(self.config.trajectory)
        if num_inference_steps != len(steps):
            raise ValueError(f"num_inference_steps={num_inference_steps}: this student was trained on {len(steps)} timesteps, {steps}")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(steps, device=device)

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, eta: float = 0.0, return_dict: bool = True, **_):
        """One DDIM step to the next timestep of the list, or to the clean sample after the last."""
        steps = list(self.config.trajectory)
        position = steps.index(int(timestep))
        alpha_bar = self.alphas_cumprod[steps[position]].to(sample.device, torch.float64)
        last = position + 1 == len(steps)
        next_bar = (self.final_alpha_cumprod if last else self.alphas_cumprod[steps[position + 1]]).to(sample.device, torch.float64)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        out = model_output.double()
        if self.config.prediction_type == "v_prediction":
            x0 = alpha * sample - sigma * out
        else:
            x0 = out if self.config.prediction_type == "sample" else (sample - sigma * out) / alpha
        eps = (sample - alpha * x0) / sigma
        previous = (next_bar.sqrt() * x0 + (1 - next_bar).sqrt() * eps).to(sample.dtype)
        return DDIMSchedulerOutput(previous, x0.to(sample.dtype)) if return_dict else (previous, x0.to(sample.dtype))


def scheduler_for(grid: TimeGrid, process: TabulatedVP, teacher: CogVideoXDDIMScheduler) -> CogVideoXDDIMScheduler:
    """The stock scheduler if its trailing spacing is the grid, else a TrajectoryScheduler."""
    wanted = process.timestep(torch.tensor(grid.descending())).tolist()
    stock = CogVideoXDDIMScheduler.from_config(teacher.config, timestep_spacing="trailing")
    stock.set_timesteps(grid.steps)
    # The stock step reaches back by whole multiples of N // K, so both lists must agree.
    stride = stock.config.num_train_timesteps // grid.steps
    if stock.timesteps.tolist() == wanted and all(a - b == stride for a, b in zip(wanted, wanted[1:])) and wanted[-1] < stride:
        return stock
    return TrajectoryScheduler.from_config(teacher.config, trajectory=wanted)


def load_scheduler(folder: Path) -> CogVideoXDDIMScheduler:
    """The scheduler that lies beside a LoRA, of whichever of the two classes it is."""
    name = CogVideoXDDIMScheduler.load_config(folder)["_class_name"]
    return (TrajectoryScheduler if name == TrajectoryScheduler.__name__ else CogVideoXDDIMScheduler).from_pretrained(folder)
