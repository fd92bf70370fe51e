"""Send a run's config and scalars to an experiment tracker, through accelerate's trackers.

The tracker's own settings are its usual ones: WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME and so on.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from ..config import RunConfig, to_dict
from ..config.json_files import read_object
from ..data.files import write_json
from ..data.reading import reason
from ..parallel import collectives
from .fingerprint import flat
from .monitor import METRICS, count_logged

PROJECT = "tdmvid"
"""Project or experiment, unless the tracker's environment variable names another."""
TRACKED = "tracker.json"
"""Holds the tracker's name for the run, so that a resumed run continues the same one."""


def check_tracker(name: str) -> None:
    """Check that a tracker can be used here.

    Args:
        name: The value of `log.tracker`.

    Raises:
        ValueError: Its package is not installed, or it has no account to log to.
    """
    if name == "none":
        return
    if not importlib.util.find_spec(name):
        raise ValueError(
            f"log.tracker={name!r} needs the package {name}: pip install {name}, or set log.tracker"
            " to 'none'"
        )
    if name == "wandb" and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        collectives.on_rank0(_log_in)


def _log_in() -> None:
    """Log in to Weights & Biases, which asks for a key on a terminal and fails elsewhere."""
    import wandb

    try:
        wandb.login()
    except Exception as error:
        raise ValueError(
            f"log.tracker='wandb' cannot log in ({reason(error)}): run `wandb login`, set"
            " WANDB_API_KEY, or set WANDB_MODE=offline to log to files"
        ) from error


def open_tracker(config: RunConfig, *, start: int, resumed: bool) -> Tracker | None:
    """Start a run's tracker on the first rank; all ranks call it.

    Args:
        config: The run.
        start: The first iteration.
        resumed: Whether a checkpoint was loaded, so that the tracker's run is continued.

    Returns:
        The tracker; None on other ranks, and if `log.tracker` is "none".

    Raises:
        ValueError: The tracker refuses to start; on every rank.
    """
    opened: list[Tracker] = []
    if config.log.tracker != "none":
        collectives.on_rank0(lambda: opened.append(Tracker(config, start=start, resumed=resumed)))
    return opened[0] if opened else None


class Tracker:
    """One run of an experiment tracker.

    A resumed run continues it, and does not send again what was sent before the interruption.

    Args:
        config: The run, with another `log.tracker` than "none".
        start: The first iteration.
        resumed: Whether a checkpoint was loaded.

    Raises:
        ValueError: The tracker refuses to start.
    """

    def __init__(self, config: RunConfig, *, start: int = 0, resumed: bool = False):
        self._name, self._path = config.log.tracker, config.folder / TRACKED
        self._working = True
        found = read_object(self._path) if resumed and self._path.is_file() else {}
        known = found if found.get("tracker") == self._name else {}
        logged = count_logged(config.folder / METRICS)
        self._first = known.get("sent", max(start, logged)) if known else start
        try:
            self._tracker = _open(config, known.get("id", ""))
            if not known:
                self._tracker.store_init_configuration(_plain(flat(to_dict(config))))
        except Exception as error:  # as many kinds as trackers
            again = f", or delete {self._path} to start a new run of it" if known else ""
            raise ValueError(
                f"log.tracker={self._name!r} could not be started ({reason(error)}): check its"
                f" settings and the network{again}, or set log.tracker to 'none'"
            ) from error
        self._facts = {"tracker": self._name, "id": _run_id(self._tracker.tracker)}
        write_json(self._path, self._facts)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Send one iteration's scalars.

        After an error the tracker gets no more until the run is resumed: training goes on.
        """
        if step >= self._first:
            self._try(lambda: self._tracker.log(scalars, step=step), step)

    def close(self) -> None:
        """Send what is left and end the tracker's run."""
        self._try(self._tracker.finish, None)

    def _try(self, call: Callable[[], object], step: int | None) -> None:
        if not self._working:
            return
        try:
            call()
        except Exception as error:  # of the network, chiefly
            self._working = False
            when = "at the end" if step is None else f"at iteration {step:,}"
            if step is not None:
                write_json(self._path, self._facts | {"sent": step})
            print(
                f"warning: log.tracker={self._name!r} failed {when} ({reason(error)}): it is off"
                " until the run is resumed; metrics.jsonl and TensorBoard have every iteration",
                file=sys.stderr,
                flush=True,
            )


def _open(config: RunConfig, known: str) -> Any:
    """Start accelerate's tracker; known: the run to continue, "" for a new one."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS
    from accelerate.utils import clear_environment, patch_environment

    # Accelerate must believe in one process: it would join a group, or set the device, otherwise.
    with clear_environment(), patch_environment(ACCELERATE_TORCH_DEVICE="cpu"):
        PartialState()
    if config.log.tracker == "wandb":
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        options: dict[str, Any] = {"name": config.name, "dir": str(config.folder)}
        options |= {"id": known, "resume": "allow"} if known else {}
    else:
        project, options = PROJECT, {"run_name": config.name, "run_id": known or None}
    tracker = LOGGER_TYPE_TO_CLASS[config.log.tracker](project, **options)
    tracker.start()
    return tracker


def _run_id(run: Any) -> str:
    """Return the name by which a tracker finds a run again."""
    return str(run.info.run_id if hasattr(run, "info") else run.id)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as values that every tracker takes."""
    plain = (bool, int, float, str)
    return {key: x if isinstance(x, plain) else str(x) for key, x in settings.items()}
