"""Score a run right after training, with `tdmvid score` on all ranks that trained it.

Anything that the evaluation lacks is reported when the run is planned and when it starts. It does
not stop the training; the end of the run then prints the command that scores it later.
"""

from __future__ import annotations

import gc
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..adapters.bundle import student_folder
from ..config import RunConfig, VBenchConfig, from_dict, read_settings
from ..config.resources import find_evaluation
from ..parallel.environment import environment_number
from .finished_runs import size_overrides

COMMANDS = {"vbench": "vbench", "image": "images", "shapes": "shapes"}
"""Subcommand of `tdmvid score`, by `evaluate.program` of a config."""
LAUNCHER = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "CROSS_RANK",
    "CROSS_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Environment variables with which launchers describe a group of processes."""
AGENT = ("TORCHELASTIC", "GROUP_", "ROLE_")
"""Prefixes of variables that identify the store of torchrun's agent. A second group of ranks must
not share it.
"""
FORWARDED = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that a stopped job sends to the evaluation."""


@dataclass(frozen=True)
class Outlook:
    """What the evaluation at the end of a run will do."""

    text: str
    """Description in one line."""
    ready: bool = True
    """Whether anything can be scored on this machine."""
    whole: bool = True
    """Whether nothing is missing."""


def score_words(config: RunConfig) -> list[str]:
    """Return the arguments of `tdmvid` that score the finished run.

    Args:
        config: Settings of the run.

    Returns:
        Arguments; empty if the run asks for no evaluation.

    Raises:
        ValueError: The evaluation config does not exist.
    """
    wanted = config.evaluate
    if not wanted.program:
        return []
    words = ["score", COMMANDS[wanted.program]]
    if wanted.program == "shapes":
        return [*words, "--run", str(config.folder)]
    _find(config)
    student = student_folder(config.folder, config.training)
    size = [word for override in _size(config) for word in ("--set", override)]
    return [*words, "--config", wanted.config, "--lora", str(student), *size]


def score_command(config: RunConfig) -> str:
    """Return the command that scores the finished run later, on as many ranks as this machine has.

    Args:
        config: Settings of the run.

    Returns:
        A shell command; "" if the run asks for no evaluation.
    """
    words, ranks = score_words(config), _local_ranks()
    if not words:
        return ""
    if ranks > 1 and config.evaluate.program != "shapes":
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        return shlex.join([sys.executable, "-m", *launcher, "-m", "tdmvid", *words])
    if shutil.which("tdmvid"):
        return shlex.join(["tdmvid", *words])
    return shlex.join([sys.executable, "-m", "tdmvid", *words])


def outlook(config: RunConfig) -> Outlook | None:
    """Check what the evaluation of a run needs and describe it.

    Args:
        config: Settings of the run.

    Returns:
        The description; None if the run asks for no evaluation.

    Raises:
        ValueError: The evaluation config is invalid.
    """
    program = config.evaluate.program
    if not program:
        return None
    if program == "shapes":
        return Outlook("after training, the judge of the shapes world scores the samples")
    try:
        return _vbench_outlook(config) if program == "vbench" else _image_outlook(config)
    except (ValueError, OSError) as error:
        named = f"evaluate.config={config.evaluate.config!r}"
        text = str(error)
        raise ValueError(text if text.startswith(named) else f"{named}: {text}") from None


def _vbench_outlook(config: RunConfig) -> Outlook:
    from . import vbench_run
    from .vbench_images import lacks_list
    from .vbench_runner import find_environment, setup_command

    settings = from_dict(VBenchConfig, read_settings(_find(config), _size(config)))
    environment, name = find_environment(settings), config.evaluate.config
    if not environment.holds(settings):
        from .vbench_suite import load_suite

        if settings.custom:
            load_suite(settings)  # reject invalid user prompts before training
        return Outlook(
            f"VBench ({name}) cannot run after training: environment={settings.environment!r} does"
            f" not exist; create it with `{setup_command(environment.folder)}`",
            ready=False,
            whole=False,
        )
    if lack := lacks_list(settings):
        return Outlook(f"VBench ({name}) cannot run after training: {lack}", False, False)
    evaluation = vbench_run.prepare(settings)
    checked = evaluation.checked
    if checked.whole:
        return Outlook(f"VBench ({name}) runs after training: {evaluation.describe()}")
    count = len(checked.ready) + len(checked.missing)
    option = "--preflight" if settings.suite == "i2v" else "--download"
    doing = "list" if settings.suite == "i2v" else "download"
    lacking = (
        f"VBench ({name}) runs after training, but {len(checked.missing)} of its {count} dimensions"
        f" lack files; {doing} them with `tdmvid score vbench --config {shlex.quote(name)}"
        f" {option}`"
    )
    return Outlook(lacking, ready=bool(checked.ready), whole=False)


def _image_outlook(config: RunConfig) -> Outlook:
    from ..config import ImageConfig
    from . import image_run

    name = config.evaluate.config
    settings = from_dict(ImageConfig, read_settings(_find(config)))
    checked = image_run.ready(settings)
    image_run.check_shots(settings, image_run.shots_of(settings), checked.ready)
    if checked.whole:
        return Outlook(f"image metrics ({name}) run after training: {', '.join(checked.ready)}")
    return Outlook(
        f"image metrics ({name}) run after training, but {', '.join(checked.missing)} lack files;"
        f" list them with `tdmvid score images --config {shlex.quote(name)} --preflight`",
        ready=bool(checked.ready),
        whole=False,
    )


@dataclass
class Evaluation:
    """The evaluation of one run, from before training to after it."""

    config: RunConfig
    outlook: Outlook | None = None
    port: int = 0
    """Port of the evaluation's process group."""

    def announce(self) -> None:
        """Print on rank 0 what will be scored after training, and what is missing.

        Raises:
            ValueError: The evaluation config is invalid.
        """
        if _first_rank() and (found := outlook(self.config)):
            print(f"evaluation: {found.text}{'' if found.whole else GOES_ON}", flush=True)

    def meet(self) -> None:
        """Agree on the evaluation while the ranks of the run can still communicate."""
        from ..parallel import collectives, launch

        first: tuple[Outlook | None, int] = (None, 0)
        if _first_rank():
            try:
                first = (outlook(self.config), launch.free_port())
            except ValueError as error:  # something has disappeared since the run started
                first = (Outlook(str(error), ready=False, whole=False), 0)
        self.outlook, self.port = collectives.broadcast_from_rank0(first)

    def run(self) -> None:
        """Score the finished run. Every rank takes part in the sampling.

        Raises:
            RuntimeError: The evaluation failed or was stopped. The message has the command that
                continues it.
        """
        if self.outlook is None:
            return
        later = score_command(self.config)
        if not self.outlook.ready:
            if _first_rank():
                print(f"evaluation: {self.outlook.text}; then score the run with: {later}")
            return
        together = self.config.evaluate.program != "shapes"
        if not together and not _first_rank():
            return
        import torch

        gc.collect()
        torch.cuda.empty_cache()  # release the run's memory on this rank's GPU
        command = [sys.executable, "-m", "tdmvid", *score_words(self.config)]
        if _first_rank():
            print(f"evaluation: {later}", flush=True)
        status = _call(command, _environment(self.port if together else 0))
        if status:
            raise RuntimeError(
                f"the training is finished, but its evaluation {_ending(status)} continue with:"
                f" {later}"
            )
        if _first_rank() and not self.outlook.whole:
            print(f"evaluation: {self.outlook.text}; then score the rest with: {later}")


GOES_ON = (
    "; this does not stop the training, which prints at its end the command that scores the run"
    " later"
)


def _find(config: RunConfig) -> Path:
    """Return the file of the run's evaluation config."""
    wanted = config.evaluate.config
    try:
        return find_evaluation(wanted)
    except ValueError as error:
        raise ValueError(f"evaluate.config={wanted!r}: {error}") from None


def _size(config: RunConfig) -> list[str]:
    """Return the overrides that score the run at the size it was trained on."""
    if config.evaluate.program != "vbench":
        return []
    return size_overrides(asdict(config.video), config.evaluate.config)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _local_ranks() -> int:
    """Return the number of ranks on this machine."""
    return environment_number("LOCAL_WORLD_SIZE") or environment_number("LOCAL_SIZE") or 1


def _call(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command and return its exit status. SIGTERM and SIGUSR1 are forwarded to it."""
    with subprocess.Popen(command, env=environment) as child:
        before = [
            signal.signal(one, lambda number, _: child.send_signal(number)) for one in FORWARDED
        ]
        try:
            return child.wait()
        finally:
            for one, handler in zip(FORWARDED, before, strict=True):
                signal.signal(one, handler)


def _ending(status: int) -> str:
    """Describe how an evaluation ended, given its exit status other than 0, and what to do before
    it is continued.
    """
    for stop in FORWARDED:
        if status == -stop:
            return f"was stopped by {stop.name}; unless its SLURM job is queued again,"
    return f"failed with exit status {status}; fix the error above, then"


def _environment(port: int) -> dict[str, str]:
    """Return the environment variables of the evaluation.

    Args:
        port: Port of its process group; 0 for a single process.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(AGENT)}
    if port and (environment_number("WORLD_SIZE") or 1) > 1:
        return kept | {"MASTER_PORT": str(port)}
    return {key: value for key, value in kept.items() if key not in LAUNCHER}
