"""Score a run that has just been trained: `tdmvid score`, on all ranks that trained it.

What the evaluation lacks is said when the run is planned and when it starts. It stops no training:
the end then names the command that scores the run later.
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
"""`evaluate.program` of a config -> what `tdmvid score` calls it."""
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
"""What launchers tell their processes about each other."""
AGENT = ("TORCHELASTIC", "GROUP_", "ROLE_")
"""What names the store of torchrun's agent, which a second group of ranks must not share."""


@dataclass(frozen=True)
class Outlook:
    """What the evaluation at the end of a run will do, in one line."""

    text: str
    ready: bool = True
    """Whether anything can be scored on this machine as it is."""
    whole: bool = True
    """Whether nothing is missing."""


def score_words(config: RunConfig) -> list[str]:
    """Return the words of `tdmvid` that score the finished run; none if nothing is to score it.

    Raises:
        ValueError: for an evaluation config that does not exist.
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
    """Return the command that scores the finished run later, on as many ranks as this machine has;
    empty if the run asks for no evaluation.
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
    """Return what will score the run and what that lacks here; None if the run asks for nothing.

    Raises:
        ValueError: for an evaluation that could not read its own config.
    """
    program = config.evaluate.program
    if not program:
        return None
    if program == "shapes":
        return Outlook("the judge of the shapes world follows training")
    try:
        return _vbench_outlook(config) if program == "vbench" else _image_outlook(config)
    except (ValueError, OSError) as error:
        named = f"evaluate.config={config.evaluate.config!r}"
        text = str(error)
        raise ValueError(text if text.startswith(named) else f"{named}: {text}") from None


def _vbench_outlook(config: RunConfig) -> Outlook:
    from . import vbench_run
    from .vbench_runner import find_environment, setup_command

    settings = from_dict(VBenchConfig, read_settings(_find(config), _size(config)))
    environment, name = find_environment(settings), config.evaluate.config
    if not environment.holds(settings):
        from .vbench_suite import load_suite

        if settings.custom:
            load_suite(settings)  # what is wrong with prompts of your own is refused now
        return Outlook(
            f"VBench ({name}) is to follow training, but environment={settings.environment!r} is"
            f" not there: `{setup_command(environment.folder)}` makes it",
            ready=False,
            whole=False,
        )
    evaluation = vbench_run.prepare(settings)
    checked = evaluation.checked
    if checked.whole:
        return Outlook(f"VBench ({name}) follows training: {evaluation.describe()}")
    count = len(checked.ready) + len(checked.missing)
    lacking = (
        f"VBench ({name}) is to follow training, but {len(checked.missing)} of its {count}"
        f" dimensions lack weights: `tdmvid score vbench --config {shlex.quote(name)} --download`"
        " fetches them"
    )
    return Outlook(lacking, ready=bool(checked.ready), whole=False)


def _image_outlook(config: RunConfig) -> Outlook:
    from ..config import ImageConfig
    from . import image_run

    name = config.evaluate.config
    checked = image_run.ready(from_dict(ImageConfig, read_settings(_find(config))))
    if checked.whole:
        return Outlook(f"image metrics ({name}) follow training: {', '.join(checked.ready)}")
    return Outlook(
        f"image metrics ({name}) are to follow training, but {', '.join(checked.missing)} lack"
        f" files: `tdmvid score images --config {shlex.quote(name)} --preflight` lists them",
        ready=bool(checked.ready),
        whole=False,
    )


@dataclass
class Evaluation:
    """The evaluation of one run, from its start to its end."""

    config: RunConfig
    outlook: Outlook | None = None
    port: int = 0
    """Where the ranks of the evaluation meet."""

    def announce(self) -> None:
        """Say on the first rank what will follow training, and what that lacks.

        Raises:
            ValueError: for an evaluation that could not start, whatever is installed.
        """
        if _first_rank() and (found := outlook(self.config)):
            print(f"evaluation: {found.text}{'' if found.whole else GOES_ON}", flush=True)

    def meet(self) -> None:
        """Agree on what follows, while the ranks of the run still hear each other."""
        from ..parallel import launch

        first: tuple[Outlook | None, int] = (None, 0)
        if _first_rank():
            try:
                first = (outlook(self.config), launch.free_port())
            except ValueError as error:  # what was there when the run started is not any more
                first = (Outlook(str(error), ready=False, whole=False), 0)
        self.outlook, self.port = launch.broadcast_from_rank0(first)

    def run(self) -> None:
        """Score the finished run; each rank takes part in the sampling.

        Raises:
            RuntimeError: if the evaluation fails, with the command that takes it up again.
        """
        if self.outlook is None:
            return
        later = score_command(self.config)
        if not self.outlook.ready:
            if _first_rank():
                print(f"evaluation: {self.outlook.text}; then score the run by: {later}")
            return
        together = self.config.evaluate.program != "shapes"
        if not together and not _first_rank():
            return
        import torch

        gc.collect()
        torch.cuda.empty_cache()  # what the run held on this rank's GPU
        command = [sys.executable, "-m", "tdmvid", *score_words(self.config)]
        if _first_rank():
            print(f"evaluation: {later}", flush=True)
        status = _call(command, _environment(self.port if together else 0))
        if status:
            raise RuntimeError(
                f"the run is finished, but its evaluation ended with {status}; once that is"
                f" mended: {later}"
            )
        if _first_rank() and not self.outlook.whole:
            print(f"evaluation: {self.outlook.text}; then score the rest by: {later}")


GOES_ON = "; without it training goes on, and its end names the command that scores the run later"


def _find(config: RunConfig) -> Path:
    """Return the file of the run's evaluation config."""
    wanted = config.evaluate.config
    try:
        return find_evaluation(wanted)
    except ValueError as error:
        raise ValueError(f"evaluate.config={wanted!r}: {error}") from None


def _size(config: RunConfig) -> list[str]:
    """Return the settings that score the run at the size that it was trained on."""
    if config.evaluate.program != "vbench":
        return []
    return size_overrides(asdict(config.video), config.evaluate.config)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _local_ranks() -> int:
    """Return how many ranks of the run this machine has."""
    return environment_number("LOCAL_WORLD_SIZE") or environment_number("LOCAL_SIZE") or 1


def _call(command: list[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and return its status; a signal that ends this process ends it."""
    with subprocess.Popen(command, env=environment) as child:
        signals = (signal.SIGTERM, signal.SIGUSR1)
        before = [
            signal.signal(one, lambda number, _: child.send_signal(number)) for one in signals
        ]
        try:
            return child.wait()
        finally:
            for one, handler in zip(signals, before, strict=True):
                signal.signal(one, handler)


def _environment(port: int) -> dict[str, str]:
    """Return the environment of the evaluation.

    Args:
        port: where its ranks meet, one for each of the run's; 0 for a single process.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(AGENT)}
    if port and (environment_number("WORLD_SIZE") or 1) > 1:
        return kept | {"MASTER_PORT": str(port)}
    return {key: value for key, value in kept.items() if key not in LAUNCHER}
