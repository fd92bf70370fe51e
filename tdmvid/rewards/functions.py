"""Find and call reward functions, and check what they return."""

from __future__ import annotations

import functools
import importlib
import math
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from torch import Tensor

from ..config import RewardConfig
from ..parallel.launch import STOPPING_SIGNALS, end_with_parent, signals_held

Function = Callable[[Tensor, list[str]], Any]
"""Takes samples [B, 3, F, H, W] in [-1, 1] (or latents [B, ...]) and B prompts, and returns B
numbers.
"""
BUILT_IN = {
    "motion": "tdmvid.rewards.measures:motion",
    "saturation": "tdmvid.rewards.measures:saturation",
    "sharpness": "tdmvid.rewards.measures:sharpness",
    "shapes_bright": "tdmvid.rewards.shapes:bright",
    "shapes_clear": "tdmvid.rewards.shapes:clear",
    "shapes_correct": "tdmvid.rewards.shapes:correct",
}
"""Functions of the built-in rewards, by name."""
LOADED = {
    "aesthetic": "tdmvid.rewards.clip:load_aesthetic",
    "clip": "tdmvid.rewards.clip:load_clip",
    "hps": "tdmvid.rewards.clip:load_hps",
    "text": "tdmvid.rewards.text:load_text",
    "votes": "tdmvid.rewards.votes:load_votes",
}
"""Built-in rewards that need programs or weights: functions that check them, and return the reward
of a `rewards.model`.
"""


@runtime_checkable
class ReadsPrompts(Protocol):
    """A reward that scores only some prompts."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raise a ValueError if no prompt can be scored."""
        ...


class RewardFailed(ValueError):
    """A reward function raised an exception, took too long, or returned an invalid value."""


@functools.cache
def find_function(name: str, model: str = "") -> Function:
    """Import a reward function.

    Args:
        name: 'package.module:name', or the name of a built-in function.
        model: Model of the built-in functions that have one.

    Returns:
        The function. The same arguments return the same object.

    Raises:
        ValueError: There is no such function, or what it needs is missing.
    """
    if name in LOADED:
        return _import(LOADED[name], "")(model)  # type: ignore[no-any-return]
    remedy = f"write 'package.module:name', or choose from {', '.join(sorted(BUILT_IN | LOADED))}"
    return _import(BUILT_IN.get(name, name), remedy)


def _import(name: str, remedy: str) -> Any:
    """Import 'package.module:name'."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"rewards.function={name!r} is unknown: {remedy}")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise ValueError(
            f"rewards.function={name!r} cannot be imported ({error}): install its package, or add"
            " its folder to PYTHONPATH"
        ) from error
    except Exception as error:
        raise ValueError(
            f"rewards.function={name!r} cannot be imported: {module} raises"
            f" {type(error).__name__} ({error}): correct the module"
        ) from error
    if not callable(found):
        raise ValueError(f"rewards.function={name!r}: {module} has no such function; {remedy}")
    return found


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
        self.error = ""
        """Description of the last failure."""
        self._function = find_function(config.function, config.model)
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the reward of each sample.

        Args:
            samples: Decoded samples [B, 3, F, H, W] in [-1, 1], or latents [B, ...].
            prompts: Prompt of each sample.

        Returns:
            Rewards [B], float64 on the CPU. With `on_failure="mean"`, those of failed samples are
            NaN; see `GlobalMeans`.

        Raises:
            RewardFailed: The function failed, and the run should stop in this case.
        """
        cause: Exception | None = None
        try:
            values = _checked(self._call(samples, list(prompts)), len(prompts))
        except Exception as error:
            cause, self.error = error, f"{type(error).__name__}: {error}"[:200]
            values = torch.full((len(prompts),), math.nan, dtype=torch.float64)
        wrong = ~values.isfinite()
        if cause is None and wrong.any():
            self.error = "it returned numbers that are not finite"
        if wrong.any() and self.config.on_failure == "stop":
            raise RewardFailed(self.message()) from cause
        self.failed += int(wrong.sum())
        return torch.where(wrong, math.nan, values)

    def message(self, *, first: bool = False) -> str:
        """Describe the last failure.

        Args:
            first: Whether no sample has been scored yet.

        Returns:
            One line.
        """
        remedy = (
            "fix it; no sample has been scored yet, so there is no mean to use instead"
            if first
            else "fix it, or set its on_failure='mean' to give such samples the mean reward of"
            " their batch"
        )
        return f"rewards.function={self.config.function!r} failed ({self.error}): {remedy}"

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Check that the prompts of a run can be scored, where the function has such a check.

        Args:
            prompts: Prompts of the run.

        Raises:
            ValueError: No prompt can be scored.
        """
        if isinstance(self._function, ReadsPrompts):
            self._function.check_prompts(prompts)

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
        call = None
        try:
            pool = self._start()
            array = samples.float().cpu().numpy()
            device = _own_device(self.config.device, samples.device)
            names = self.config.function, self.config.model
            call = pool.submit(_serve, names, array, prompts, device)
            return call.result(self.config.timeout or None)
        except TimeoutError:
            if call is not None and call.done():
                raise  # the function's own, e.g. of a connection
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
            self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_follow_the_rank)
            with signals_held():  # the process starts here, and ignores them a moment later
                started = self._pool.submit(_prepare, self.config.function, self.config.model)
            started.result()
        return self._pool


def _own_device(wanted: str, run: torch.device) -> str:
    """Return the device of a reward's process; "cuda" is the GPU of the rank that starts it."""
    return str(run) if wanted == "cuda" and run.type == "cuda" else wanted


def _follow_the_rank() -> None:
    """Ignore the signals that stop a run, which acts on them at the end of the iteration; end with
    the rank. SLURM and launchers send signals to every process of a node.
    """
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    end_with_parent(signal.SIGKILL)


def _prepare(name: str, model: str) -> None:
    find_function(name, model)


def _serve(
    names: tuple[str, str], samples: numpy.ndarray, prompts: list[str], device: str
) -> list[float]:
    """Call a function in its own process."""
    with torch.no_grad():
        found = find_function(*names)(torch.from_numpy(samples).to(device or "cpu"), prompts)
    return _checked(found, len(prompts)).tolist()


def _checked(found: Any, count: int) -> Tensor:
    """Convert what a function returned to [count], float64 on the CPU."""
    values = torch.as_tensor(found).detach().cpu().double()
    if values.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"it returned shape {tuple(values.shape)} for {count} samples instead of ({count},)"
        )
    return values.flatten()
