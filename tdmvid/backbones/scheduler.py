"""Express the student's time grid as a diffusers scheduler, for use in the stock pipeline.

For a uniform grid over a table, diffusers' DDIM schedulers with trailing spacing suffice. Most
schedulers do not accept `timesteps=`, so any other grid is shipped as a TrajectoryScheduler. Its
config holds the times and their noise levels, for any process.

Shapes: B batch, K steps.
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
    """Result of a step: the next sample of the trajectory and the predicted x0, [B, ...] each."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class TrajectoryScheduler(SchedulerMixin, ConfigMixin):
    """Deterministic DDIM steps (arXiv 2010.02502, eta 0) over a fixed list of timesteps.

    An example of such a list is [999, 856, 665, 399]. Load the scheduler with `pipe.scheduler =
    TrajectoryScheduler.from_pretrained(folder)`. It samples with exactly as many steps as the list
    has.

    Args:
        trajectory: K timesteps, descending, in the network's units.
        alphas, sigmas: Noise levels at each timestep, x_t = alpha x0 + sigma eps.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction" (eps - x0).
        num_train_timesteps: Read by some pipelines.
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
                " timestep needs one alpha and one sigma"
            )
        self.num_inference_steps: int | None = None
        self._place(None)

    @classmethod
    def of(
        cls, grid: TimeGrid, process: Process, prediction_type: str, num_train_timesteps: int
    ) -> TrajectoryScheduler:
        """Make a scheduler from a grid.

        Args:
            grid: The student's times.
            process: Gives timesteps, alpha and sigma at these times.
            prediction_type: What the network predicts.
            num_train_timesteps: Number of timesteps of the teacher's scheduler.
        """
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
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        **_: Any,
    ) -> None:
        """Select the fixed list of timesteps.

        Args:
            num_inference_steps: Must be the length of the list.
            device: Where `timesteps` go.
            sigmas: Passed by some pipelines in place of the number; only their number counts.

        Raises:
            ValueError: `num_inference_steps` differs from the length of the list.
        """
        steps = list(self.config.trajectory)
        if sigmas is not None:
            num_inference_steps = len(sigmas)
        if num_inference_steps != len(steps):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}: this student was trained on"
                f" {len(steps)} timesteps, {steps}: use that number of steps"
            )
        self.num_inference_steps = num_inference_steps
        self._place(device)
        self.sigmas = torch.tensor([*self.config.sigmas, 0.0])  # some pipelines read it

    def _place(self, device: str | torch.device | None) -> None:
        """Move timesteps to a device, with alpha and sigma at each and at the next.

        A copy from pageable memory is complete when it returns, so these tensors need no
        synchronisation.
        """
        config = self.config
        alphas, sigmas = [*config.alphas, 1.0], [*config.sigmas, 0.0]
        levels = torch.tensor([alphas[:-1], sigmas[:-1], alphas[1:], sigmas[1:]])
        self.timesteps = torch.tensor(list(config.trajectory)).to(device, non_blocking=True)
        self._levels = levels.to(device, non_blocking=True)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Accept a begin index of 0, which some pipelines set."""
        assert begin_index == 0, (
            f"begin_index={begin_index}: a student's trajectory starts at its first timestep"
        )

    def scale_model_input(self, sample: Tensor, timestep: float | None = None) -> Tensor:
        """Return the sample unchanged, [B, ...]."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float,
        sample: Tensor,
        return_dict: bool = True,
        **_: Any,
    ) -> TrajectoryOutput | tuple[Tensor, Tensor]:
        """Step to the next timestep of the list, or to x0 after the last.

        Args:
            model_output: The network's prediction, [B, ...].
            timestep: One of the list.
            sample: x_t, [B, ...].
            return_dict: Whether to return a TrajectoryOutput instead of a tuple.

        Returns:
            The next sample and the predicted x0, [B, ...] each, in the dtype of `sample`.

        Raises:
            ValueError: The list does not contain `timestep`. Not checked for a tensor on a GPU,
                where the result is NaN instead.
        """
        alpha, sigma, next_alpha, next_sigma = self._levels_at(timestep)
        x, out = sample.float(), model_output.float()
        x0 = clean_sample(self.config.prediction_type, x, out, alpha, sigma)
        previous = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
        previous, x0 = previous.to(sample.dtype), x0.to(sample.dtype)
        return TrajectoryOutput(previous, x0) if return_dict else (previous, x0)

    def _levels_at(self, timestep: float | Tensor) -> Tensor:
        """Return alpha and sigma at a timestep and at the next, [4].

        A timestep on the device is looked up there, without synchronisation; an unknown one gives
        NaN.
        """
        known = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        trained = list(self.config.trajectory)
        if known and timestep not in torch.tensor(trained):
            raise ValueError(
                f"timestep={float(timestep):g} is not one of {trained}, which this student was"
                " trained on: use the timesteps of this scheduler"
            )
        here = self.timesteps == timestep
        return torch.where(here.any(), torch.where(here, self._levels, 0.0).sum(1), torch.nan)


def set_steps(scheduler: Any, steps: int, *, even_sigmas: bool = False) -> None:
    """Set a scheduler's timesteps as a call of the stock pipeline does.

    Args:
        scheduler: A scheduler of diffusers or a TrajectoryScheduler.
        steps: Number of steps.
        even_sigmas: See `StockPipeline.even_sigmas`.
    """
    if even_sigmas:
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)


def states_of(scheduler: Any, steps: int, *, even_sigmas: bool = False) -> list[float]:
    """Return the states that a scheduler passes through for fixed noise and a fixed prediction.

    They depend on timesteps, noise levels and prediction type, so two schedulers with the same
    states sample alike.

    Args:
        scheduler: A scheduler of diffusers or a TrajectoryScheduler. Its steps are set.
        steps: Number of steps K.
        even_sigmas: See `StockPipeline.even_sigmas`.

    Returns:
        K numbers, one per step.
    """
    set_steps(scheduler, steps, even_sigmas=even_sigmas)
    x, out, states = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), []
    for timestep in scheduler.timesteps:
        x = scheduler.step(out, timestep, x, return_dict=False)[0]
        states.append(x.item())
    set_steps(scheduler, steps, even_sigmas=even_sigmas)
    return states


def clean_sample(
    prediction_type: str, x_t: Tensor, out: Tensor, alpha: float | Tensor, sigma: float | Tensor
) -> Tensor:
    """Convert a network's output at x_t = alpha x0 + sigma eps to x0. Only epsilon needs alpha > 0.

    Args:
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction" (eps - x0).
        x_t: [B, ...].
        out: The network's output, [B, ...].
        alpha, sigma: Scalars, or tensors that broadcast against x_t.

    Returns:
        x0, [B, ...].

    Raises:
        ValueError: The prediction type is unknown.
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
        f"prediction_type={prediction_type!r} is not supported: use epsilon, v_prediction, sample"
        " or flow_prediction"
    )


def scheduler_for(grid: TimeGrid, process: Process, stock: SchedulerMixin) -> SchedulerMixin:
    """Return a scheduler that steps over exactly this grid of a tabulated process.

    Args:
        grid: The student's times.
        process: Gives the timesteps of these times.
        stock: A DDIM scheduler with trailing spacing.

    Returns:
        `stock` if it steps over exactly this grid, else a TrajectoryScheduler.
    """
    wanted, count = (
        process.timestep(torch.tensor(grid.descending())).tolist(),
        stock.config.num_train_timesteps,
    )
    stock.set_timesteps(grid.steps)
    # The stock step subtracts N // K from a timestep to find the previous one: check that too.
    stride = count // grid.steps
    if (
        stock.timesteps.tolist() == wanted
        and all(a - b == stride for a, b in pairwise(wanted))
        and wanted[-1] < stride
    ):
        return stock
    return TrajectoryScheduler.of(grid, process, stock.config.prediction_type, count)


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Load the scheduler next to a LoRA: a TrajectoryScheduler or one of diffusers.

    Args:
        folder: Holds scheduler_config.json.

    Raises:
        ValueError: The config cannot be read.
    """
    with reading(folder / "scheduler_config.json"):
        name = TrajectoryScheduler.load_config(folder)["_class_name"]
        own = name == TrajectoryScheduler.__name__
        kind = TrajectoryScheduler if own else getattr(diffusers, name)
        return kind.from_pretrained(folder)
