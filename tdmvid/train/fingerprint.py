"""Compare the settings of a checkpoint with those of the run that resumes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.files import short

NAMED = 8
"""Largest number of further settings that a message names."""
CALLED = ("process", "device", "timeout", "on_failure")
"""Settings of the call of a reward function."""
NOTES = {
    "batch.accumulation": " (with objective.rollout='stop' each micro-batch of a rank has its own"
    " step k, and batch.total is divided by the number of ranks: start the same number of ranks)",
    "batch.micro_batches": " (the micro-batches of all ranks: batch.accumulation times the number"
    " of data-parallel ranks)",
    "backend": " (TorchEngine is one process without a launcher, DeepSpeedEngine needs `torchrun`"
    " or `deepspeed`: start the run as before)",
}
"""Explanations to add when a setting differs from the checkpoint's."""


def check_fingerprint(
    path: Path, saved: dict[str, Any], own: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Check that a run has the settings of the checkpoint that it resumes.

    Args:
        path: Folder of the checkpoint, for the message.
        saved: Settings that the checkpoint was written with.
        own: Settings of the run.
        defaults: Values of settings that an older checkpoint may lack.

    Raises:
        ValueError: Settings differ. The message names all, and both values of the first.
    """
    there = flat(defaults) | flat(_compared(saved))
    here = flat(_compared(own))
    entries = [key for key in there if "[" in key]  # of lists that may be shorter now
    keys = dict.fromkeys([*here, *entries])
    if others := [key for key in keys if there.get(key) != here.get(key)]:
        raise ValueError(_mismatch(path, others, there, here))


def flat(settings: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names.

    Args:
        settings: Nested dictionaries, and lists of dictionaries.
        where: Prefix of the names.

    Returns:
        Values by name, e.g. "model.path" or "rewards[0].strength".
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = where + key
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(each, dict) for each in value):
            for place, each in enumerate(value):
                found |= flat(each, f"{name}[{place}].")
        else:
            found[name] = value
    return found


def _mismatch(path: Path, others: list[str], saved: dict[str, Any], own: dict[str, Any]) -> str:
    """Return the message about settings that differ: the first with both values."""
    first, *more = others
    named = ", ".join(more[:NAMED]) + (", ..." if len(more) > NAMED else "")
    also = f" ({named} differ{'s' * (len(more) == 1)} too)" if more else ""
    return (
        f"{path} was written with {first}={short(saved.get(first))}, but this run has"
        f" {short(own.get(first))}{also}: use the same value{'s' * bool(more)}, or another"
        f" --out{NOTES.get(first, '') if first != 'steps' else _longer(own)}"
    )


def _longer(own: dict[str, Any]) -> str:
    """Return how a student that has been trained to the last step is trained further."""
    note = "the learning rate decays to 0 at the last step"
    conditioned = own.get("objective.step_set") and own.get("objective.k_condition")
    if own.get("training") == "lora" and not conditioned:  # `init` takes no other students
        note += "; to train this student further, start a new run with --set init=RUN/lora"
    return f" ({note})"


def _compared(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Leave out where and how rewards are computed, which a resumed run may change."""
    rewards = [
        {key: value for key, value in reward.items() if key not in CALLED}
        for reward in fingerprint.get("rewards") or ()
    ]
    return fingerprint | {"rewards": rewards}
