"""Find and call reward functions, and check what they return."""

from __future__ import annotations

import importlib
import math
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy
import torch
from torch import Tensor

from ..config import RewardConfig

Function = Callable[[Tensor, list[str]], Any]
"""Takes samples [B, 3, F, H, W] in [-1, 1] (or latents [B, ...]) and B prompts, and returns B
numbers.
"""
BUILT_IN = {
    "motion": "tdmvid.rewards.measures:motion",
    "saturation": "tdmvid.rewards.measures:saturation",
    "sharpness": "tdmvid.rewards.measures:sharpness",
    "shapes_bright": "tdmvid.rewards.shapes:bright",
    "shapes_correct": "tdmvid.rewards.shapes:correct",
}
"""Functions of the built-in rewards, by name."""


class RewardFailed(ValueError):
    """A reward function raised an exception, took too long, or returned an invalid value."""


def find_function(name: str) -> Function:
    """Import a reward function.

    Args:
        name: 'package.module:name', or the name of a built-in function.

    Returns:
        The function.

    Raises:
        ValueError: There is no such function.
    """
    module, _, attribute = BUILT_IN.get(name, name).partition(":")
    remedy = f"write 'package.module:name', or choose from {', '.join(BUILT_IN)}"
    if not attribute:
        raise ValueError(f"rewards.function={name!r} is unknown: {remedy}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(
            f"rewards.function={name!r} cannot be imported ({error}): install its package, or add"
            " its folder to PYTHONPATH"
        ) from error
    if not callable(found):
        raise ValueError(f"rewards.function={name!r}: {module} has no such function; {remedy}")
    return found  # type: ignore[no-any-return]


class Scorer:
    """Calls the function of one reward on batches.

    Args:
        config: Settings of the reward.

    Raises:
        ValueError: The function cannot be found.
    """

    def __init__(self, config: RewardConfig):
        self.config, self.failed = config, 0
        """failed: number of samples that got the mean reward because the function failed."""
        self.mean: float | None = None
        """Mean reward of the last batch that was scored."""
        self._function = find_function(config.function)
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the reward of each sample.

        Args:
            samples: Decoded samples [B, 3, F, H, W] in [-1, 1], or latents [B, ...].
            prompts: Prompt of each sample.

        Returns:
            Rewards [B], float64 on the CPU.

        Raises:
            RewardFailed: The function failed, and the run should stop in this case.
        """
        try:
            values = _checked(self._call(samples, list(prompts)), len(prompts))
        except Exception as error:
            if self.config.on_failure == "stop":
                raise RewardFailed(self._message(error)) from error
            if self.mean is None:
                raise RewardFailed(self._message(error, first=True)) from error
            values = torch.full((len(prompts),), math.nan, dtype=torch.float64)
        known = values[values.isfinite()]
        if len(known) < len(values):
            if self.config.on_failure == "stop":
                raise RewardFailed(self._message("it returned numbers that are not finite"))
            self.failed += len(values) - len(known)
        if len(known):
            self.mean = float(known.mean())
        elif self.mean is None:
            raise RewardFailed(self._message("it returned no finite number", first=True))
        return torch.where(values.isfinite(), values, self.mean)

    def close(self) -> None:
        """Kill the process of the function, if it has one."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()  # it may be in a call that never returns
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _call(self, samples: Tensor, prompts: list[str]) -> Any:
        if self.config.process == "main":
            with torch.no_grad():
                return self._function(samples, prompts)
        try:
            pool = self._start()
            array, device = samples.float().cpu().numpy(), self.config.device
            call = pool.submit(_serve, self.config.function, array, prompts, device)
            return call.result(self.config.timeout or None)
        except TimeoutError:
            self.close()
            raise TimeoutError(f"it took more than {self.config.timeout:g} s") from None
        except BrokenProcessPool:
            self.close()
            raise RuntimeError("its process has ended") from None

    def _start(self) -> ProcessPoolExecutor:
        """Return the process of the function. It has already imported the function, so a timeout
        covers calls only.
        """
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_ignore_interrupts)
            self._pool.submit(_import, self.config.function).result()
        return self._pool

    def _message(self, error: Exception | str, *, first: bool = False) -> str:
        what = error if isinstance(error, str) else f"{type(error).__name__}: {error}"[:200]
        remedy = (
            "fix it; no sample has been scored yet, so there is no mean to use instead"
            if first
            else "fix it, or set its on_failure='mean' to give such samples the mean reward of"
            " their batch"
        )
        return f"rewards.function={self.config.function!r} failed ({what}): {remedy}"


def _ignore_interrupts() -> None:
    """Ignore Ctrl-C in this process; the run handles it at the end of the iteration."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _import(name: str) -> None:
    find_function(name)


def _serve(name: str, samples: numpy.ndarray, prompts: list[str], device: str) -> list[float]:
    """Call a function in its own process."""
    with torch.no_grad():
        found = find_function(name)(torch.from_numpy(samples).to(device or "cpu"), prompts)
    return _checked(found, len(prompts)).tolist()


def _checked(found: Any, count: int) -> Tensor:
    """Convert what a function returned to [count], float64 on the CPU."""
    values = torch.as_tensor(found).detach().cpu().double()
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"it returned shape {tuple(values.shape)} for {count} samples instead of ({count},)"
        )
    return values.flatten()
