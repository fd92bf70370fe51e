"""Scoring a run that has just been trained: `tdmvid score`, in processes of its own."""

from __future__ import annotations

import gc
import os
import shlex
import subprocess
import sys

from ..adapters.bundle import student_folder
from ..config import RunConfig
from ..config.resources import find_evaluation

COMMANDS = {"vbench": "vbench", "image": "images", "shapes": "shapes"}
"""`evaluate.program` of a config -> what `tdmvid score` calls it."""
LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""What launchers tell their processes about each other, and scoring must not take for its own."""


def evaluation_command(config: RunConfig, *, ranks: int) -> list[str]:
    """Return the command that scores the finished run on `ranks` ranks of this machine.

    Returns:
        The command's words; none if the config asks for no evaluation.

    Raises:
        ValueError: for an evaluation config that does not exist.
    """
    wanted = config.evaluate
    if not wanted.program:
        return []
    program = ["-m", "tdmvid", "score", COMMANDS[wanted.program]]
    if wanted.program == "shapes":
        return [sys.executable, *program, "--run", str(config.folder)]
    try:
        evaluation = find_evaluation(wanted.config)
    except ValueError as error:
        raise ValueError(f"evaluate.config={wanted.config!r}: {error}") from None
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    student = student_folder(config.folder, config.training)
    return [
        sys.executable,
        *(launcher if ranks > 1 else []),
        *program,
        *("--config", str(evaluation), "--lora", str(student)),
    ]


def preflight(config: RunConfig) -> None:
    """Raise ValueError, before days of training, if the evaluation at the end lacks its environment
    or cannot read its config.
    """
    if config.evaluate.program not in ("vbench", "image") or os.environ.get("RANK", "0") != "0":
        return
    command = [*evaluation_command(config, ranks=1), "--preflight"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().split("\n")[-1].removeprefix("error: ")
        raise ValueError(
            f"evaluate.config={config.evaluate.config!r}, which the end of the run needs: {reason}"
        )


def evaluate(config: RunConfig) -> None:
    """Score the finished run from its first rank; the other ranks have ended, so their GPUs are
    free.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1
    command = evaluation_command(config, ranks=int(ranks))
    if not command or os.environ.get("RANK", "0") != "0":
        return
    import torch

    gc.collect()
    torch.cuda.empty_cache()  # what the run held on this rank's GPU
    print(f"evaluation: {shlex.join(command)}", flush=True)
    done = subprocess.run(command, env=_environment())
    if done.returncode:
        raise RuntimeError(
            f"the run is finished, but its evaluation ended with {done.returncode}; once that is"
            f" mended: {shlex.join(command)}"
        )


def _environment() -> dict[str, str]:
    """Return this process's environment without what a launcher put there."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in LAUNCHER and not key.startswith(("TORCHELASTIC", "ROLE_"))
    }
