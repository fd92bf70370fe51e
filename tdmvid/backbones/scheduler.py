"""The student's time grid as a diffusers scheduler, so that a stock pipeline steps exactly as
trained.

A uniform grid of a table needs nothing of ours: diffusers' DDIM schedulers with trailing
spacing have it. Most schedulers take no `timesteps=`, so any other grid ships as a
TrajectoryScheduler, whose config holds the times and their levels, whatever the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from ..data.reading import reading
from ..diffusion.grid import TimeGrid
from ..diffusion.process import Process


@dataclass
class TrajectoryOutput(BaseOutput):
    """What a step returns: the next sample of the trajectory and the clean prediction."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class TrajectoryScheduler(SchedulerMixin, ConfigMixin):
    """Deterministic steps over a fixed list of timesteps, e.g. [999, 856, 665, 399].

    alphas, sigmas: x_t = alpha x0 + sigma eps at each of them; prediction_type: epsilon,
    v_prediction, sample or flow_prediction (eps - x0). `pipe.scheduler =
    TrajectoryScheduler.from_pretrained(folder)`; sampling with another number of steps than the
    list has is refused.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        trajectory: Sequence[float] = (),
        alphas: Sequence[float] = (),
        sigmas: Sequence[float] = (),
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
    ):
        if not len(trajectory) == len(alphas) == len(sigmas):
            raise ValueError(
                f"{len(trajectory)} timesteps, {len(alphas)} alphas and {len(sigmas)} sigmas: each"
                " timestep has one of both"
            )
        self.num_inference_steps: int | None = None
        self._place(None)

    @classmethod
    def of(
        cls, grid: TimeGrid, process: Process, prediction_type: str, num_train_timesteps: int
    ) -> TrajectoryScheduler:
        """Make a scheduler of a process's grid, for networks that predict `prediction_type`."""
        t = torch.tensor(grid.descending())
        alpha, sigma = process.alpha_sigma(t)
        return cls(
            process.timestep(t).tolist(),
            alpha.tolist(),
            sigma.tolist(),
            prediction_type,
            num_train_timesteps,
        )

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Use the fixed list.

        Raises:
            ValueError: `num_inference_steps` is another number than the list has.
        """
        steps = list(self.config.trajectory)
        if num_inference_steps != len(steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: this student was trained on"
                f" {len(steps)} timesteps, {steps}"
            )
        self.num_inference_steps = num_inference_steps
        self._place(device)
        self.sigmas = torch.tensor([*self.config.sigmas, 0.0])  # some pipelines look at it

    def _place(self, device: str | torch.device | None) -> None:
        """Put the list on a device, and beside each timestep alpha and sigma there and at the next;
        from memory that is not pinned, a copy has left the host when it returns.
        """
        config = self.config
        alphas, sigmas = [*config.alphas, 1.0], [*config.sigmas, 0.0]
        levels = torch.tensor([alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:]])
        self.timesteps = torch.tensor(list(config.trajectory)).to(device, non_blocking=True)
        self._levels = levels.to(device, non_blocking=True)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Accept the first step, which some pipelines name; this scheduler always begins there."""
        assert begin_index == 0, (
            f"begin_index={begin_index}: a student's trajectory is not entered halfway"
        )

    def scale_model_input(self, sample: Tensor, timestep: float | None = None) -> Tensor:
        """Return the sample itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        return_dict: bool = True,
        **_: Any,
    ) -> TrajectoryOutput | tuple[Tensor, Tensor]:
        """Step to the next timestep of the list, or to the clean sample after the last.

        Args:
            model_output, sample: [B, ...].
        """
        alpha, sigma, next_alpha, next_sigma = self._levels_at(timestep)
        x, out = sample.float(), model_output.float()
        x0 = clean_sample(self.config.prediction_type, x, out, alpha, sigma)
        previous = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
        previous, x0 = previous.to(sample.dtype), x0.to(sample.dtype)
        return TrajectoryOutput(previous, x0) if return_dict else (previous, x0)

    def _levels_at(self, timestep: float | Tensor) -> Tensor:
        """Alpha and sigma at a timestep and at the next, [4].

        A timestep on the device is looked up there, so that the host does not wait for it.

        Raises:
            ValueError: the list has not this timestep, and the host knows it.
        """
        known = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        trained = list(self.config.trajectory)
        if known and timestep not in torch.tensor(trained):
            raise ValueError(f"timestep={float(timestep):g}: this student was trained on {trained}")
        here = self.timesteps == timestep
        return torch.where(here.any(), torch.where(here, self._levels, 0.0).sum(1), torch.nan)


def clean_sample(
    prediction_type: str, x_t: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> Tensor:
    """Return x0 of what a network predicts at x_t = alpha x0 + sigma eps, [B, ...].

    Only epsilon needs alpha > 0.
    """
    if prediction_type == "epsilon":
        return (x_t - sigma * out) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * out
    if prediction_type == "flow_prediction":  # alpha = 1 - sigma
        return x_t - sigma * out
    if prediction_type == "sample":
        return out
    raise ValueError(
        f"prediction_type={prediction_type!r}: known are epsilon, v_prediction, sample and"
        " flow_prediction"
    )


def scheduler_for(grid: TimeGrid, process: Process, stock: SchedulerMixin) -> SchedulerMixin:
    """Return a scheduler of a grid of a table.

    Args:
        stock: a DDIM scheduler with trailing spacing; returned if it steps over exactly this grid,
            else a TrajectoryScheduler is made.
    """
    wanted, count = (
        process.timestep(torch.tensor(grid.descending())).tolist(),
        stock.config.num_train_timesteps,
    )
    stock.set_timesteps(grid.steps)
    # The stock step reaches back by whole multiples of N // K, so both lists must agree.
    stride = count // grid.steps
    if (
        stock.timesteps.tolist() == wanted
        and all(a - b == stride for a, b in pairwise(wanted))
        and wanted[-1] < stride
    ):
        return stock
    return TrajectoryScheduler.of(grid, process, stock.config.prediction_type, count)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Load the scheduler that lies beside a LoRA, ours or one of diffusers."""
    with reading(folder / "scheduler_config.json"):
        name = TrajectoryScheduler.load_config(folder)["_class_name"]
        own = name == TrajectoryScheduler.__name__
        kind = TrajectoryScheduler if own else getattr(diffusers, name)
        return kind.from_pretrained(folder)
