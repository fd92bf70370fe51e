"""Save and resume the training of the teacher's parts: model, optimizer and step."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Save a training state atomically.

    Args:
        path: File to write.
        model: The trained model.
        optimizer: Its optimizer.
        step: Next step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside
    )
    os.replace(aside, path)


def load(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a training state.

    Args:
        path: File written by `save`.
        model: The model to load into.
        optimizer: Its optimizer.

    Returns:
        The next step; 0 if there is no file.
    """
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
