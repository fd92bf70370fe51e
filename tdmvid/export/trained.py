"""Read what runs trained: their settings, and the weights in their checkpoints.

The mean of several students is a student too, if they started from the same weights, as in "Model
soups" (arXiv 2203.05482).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..adapters.teacher import DIGESTS
from ..config import RunConfig, load_config, short, to_dict
from ..config.paths import find_run_config
from ..data.checkpoints import latest, list_steps, read_meta, read_student, step_folder, whole
from ..guard.record import GuardRecord
from ..parallel.engine import check_shapes, shapes_of

ALIKE = {
    "model": ("path", "revision", "pipeline", "adapters", "guidance"),
    "grid": (),
    "training": (),
    "lora": (),
    "init": (),
    "objective": ("step_set", "k_condition"),
    DIGESTS: (),
}
"""Settings that runs must share to be averaged, by section; () compares the whole section."""


@dataclass(frozen=True)
class Trained:
    """The student of a run's checkpoint."""

    run: Path
    config: RunConfig
    step: int
    """Iteration of the checkpoint."""
    fingerprint: dict[str, Any]
    """Settings that the checkpoint was trained with."""
    tensors: dict[str, Tensor]
    """Trained tensors by name."""


def read_trained(
    run: Path, *, checkpoint: Path | None = None, weights: Literal["", "ema", "raw"] = ""
) -> Trained:
    """Read the student of a run's newest checkpoint, or of a given one.

    Args:
        run: The run's folder.
        checkpoint: One of the run's checkpoint folders.
        weights: The averaged or the raw weights. Empty uses the average if the run keeps one.

    Returns:
        The student.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, or the run's config was changed so
            that its samples would be wrong.
    """
    config = _read_config(run)
    path = _find_checkpoint(run, config, checkpoint)
    tensors, meta = read_student(path, weights), read_meta(path)
    _check_sampled(config, meta["fingerprint"], path)
    return Trained(run, config, meta["step"], meta["fingerprint"], tensors)


def check_runs(runs: Sequence[Path]) -> None:
    """Check that runs to average are different ones.

    Args:
        runs: Their folders.

    Raises:
        ValueError: A run is given twice, so it would count double.
    """
    seen: set[Path] = set()
    for run in runs:
        if run.resolve() in seen:
            raise ValueError(f"average-with={short(str(run))} is given twice: name each run once")
        seen.add(run.resolve())


@torch.no_grad()
def average(students: Sequence[Trained]) -> dict[str, Tensor]:
    """Average the weights of students that started from the same weights.

    The factors of a LoRA are averaged, as a moving average does it during training.

    Args:
        students: One or more students.

    Returns:
        The mean by tensor name, computed in float64.

    Raises:
        ValueError: They differ in the model, the grid, the LoRA's settings or the start.
    """
    first, *others = students
    for other in others:
        _check_alike(first, other)
        check_shapes(
            shapes_of(other.tensors),
            shapes_of(first.tensors),
            f"{other.run}:",
            "average runs with the same settings",
        )
    return {
        name: torch.stack([one.tensors[name].double() for one in students]).mean(0).to(tensor.dtype)
        for name, tensor in first.tensors.items()
    }


def _check_alike(first: Trained, other: Trained) -> None:
    """Refuse students whose weights have no meaningful mean."""
    theirs = dict(_compared(other))
    for name, value in _compared(first):
        if theirs.get(name) != value:
            raise ValueError(
                f"{other.run} has {name}={short(theirs.get(name))}, but {first.run} has"
                f" {short(value)}, so their mean is not a student: average runs that share it"
            )


def _compared(student: Trained) -> Iterator[tuple[str, Any]]:
    """Yield name and value of the settings that must be equal."""
    settings = student.fingerprint
    for section, names in ALIKE.items():
        value = settings.get(section)
        if not names:
            yield section, value
        for name in names:
            yield f"{section}.{name}", (value or {}).get(name)
    if student.config.training == "lora" and not settings.get("init"):
        yield "seed", settings.get("seed")  # without `init`, a LoRA's first weights are random


def _read_config(run: Path) -> RunConfig:
    return load_config(find_run_config(run))


def _find_checkpoint(run: Path, config: RunConfig, checkpoint: Path | None) -> Path:
    part = "student"  # only this part is exported
    folder = run / "checkpoints"
    if checkpoint is not None and checkpoint.resolve().parent != folder.resolve():
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} is not in {folder}: give the run that it belongs to"
            " (--run)"
        )
    if checkpoint is None and config.export.select == "best":
        best = GuardRecord.read(run).best_of(list_steps(folder))
        checkpoint = step_folder(folder, best) if best else None
    path = whole(checkpoint, part=part) if checkpoint else latest(folder, part=part)
    if path is None:
        raise ValueError(f"{run} has no complete checkpoint: train it first, or use another run")
    return path


def _check_sampled(config: RunConfig, fingerprint: dict, path: Path) -> None:
    """Refuse a config whose grid or LoRA scales differ from those of the checkpoint's training."""
    for name, value in _sampled(to_dict(config)).items():
        trained = _sampled(fingerprint).get(name, value)
        if trained != value:
            raise ValueError(
                f"{name}={short(value)} in the run's config.json, but {path} was trained with"
                f" {short(trained)}, so samples would be wrong: restore that value"
            )


def _sampled(settings: dict) -> dict[str, Any]:
    """Return the settings that affect sampling, by name, of a config or a fingerprint."""
    scales = {
        f"model.adapters[{i}].{name}": one.get(name)
        for i, one in enumerate(settings.get("model", {}).get("adapters", ()))
        for name in ("scale", "scale_2")
    }
    return {f"grid.{name}": value for name, value in settings.get("grid", {}).items()} | scales
