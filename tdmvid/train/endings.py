"""What a run says that ends before its last iteration."""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..guard.limits import Prompts, check_settings

CONTINUE = "Set guard.action='warn' to continue in this case"


class TrainingStopped(RuntimeError):
    """Training failed, for example because too many iterations in a row were not finite."""


def stop_reason(config: RunConfig, prompts: Prompts) -> str:
    """Return why guard.action="stop" lets a run not start, or ""."""
    findings = check_settings(config, prompts) if config.guard.action == "stop" else ()
    if not findings:
        return ""
    return f"stopped by guard.action='stop': guard, settings: {findings[0]}. {CONTINUE}"


def diverged_message(role: str, step: int, config: RunConfig, newest: Path | None) -> str:
    """Return that weights are not finite, and where a new run can start: from the newest
    checkpoint, if there is one and `init` can read its export, a plain LoRA.
    """
    start = (
        f". It can start from the newest checkpoint: tdmvid export --run {config.folder}"
        f" --checkpoint {newest} --out START, then --set init=START"
    )
    usable = config.training == "lora" and not config.objective.conditioned_on_steps
    return (
        f"stopped: the {role}'s weights were not finite at step {step}, so this state was not"
        f" saved. Lower {role}.lr in a new run (another --out)"
        + start
        * (usable and newest is not None)
    )


def failed_message(role: str | None, step: int, failures: int, path: Path) -> str:
    """Return that losses or gradients were not finite, and where the last good state is."""
    return (
        f"stopped: the {role}'s loss or gradient was not finite in {failures} iterations in a row,"
        f" up to step {step}; the last good state is in {path}. Check the prompts and model.dtype,"
        f" or lower {role}.lr in a new run (another --out)"
    )


def stopped_message(done: int, steps: int, path: Path) -> str:
    """Return that a signal stopped the run, and how to continue."""
    return (
        f"stopped as requested after {done:,} of {steps:,} iterations; the state is saved in"
        f" {path}: repeat the command with --resume auto to continue"
    )
