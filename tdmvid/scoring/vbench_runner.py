"""Run the VBench package: one worker process per dimension, in the package's own environment.

A finished job is not repeated as long as its videos stay the same. A job that crashes leaves its
log and does not affect the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shlex
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import VBenchConfig
from ..data.files import write_json
from ..data.progress import progress
from ..data.saved_work import note_saved_work
from .preflight import Needed, Preflight, preflight
from .vbench_files import default_cache, needs_of
from .vbench_images import SOURCE, crops_of, write_pngs
from .vbench_scores import FACTS, SUITES, Scores, read_scores
from .vbench_suite import Entry, files_of

WORKER = Path(__file__).with_name("vbench_worker.py")
SETUP = Path(__file__).with_name("environment") / "setup_vbench.sh"
SETUP_IN_CLONE = Path(__file__).resolve().parents[2] / "eval" / "setup_vbench.sh"
RESULT, LOG, PNGS = "scores_eval_results.json", "log.txt", "images"


@dataclass(frozen=True)
class Environment:
    """The Python environment with the VBench package."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its Python interpreter, which may not exist."""
        return self.folder.resolve() / "bin" / "python"

    def find_python(self) -> Path:
        """Return its Python interpreter.

        Returns:
            Path of the interpreter.

        Raises:
            ValueError: The environment does not exist.
        """
        if not self.python.exists():
            raise ValueError(
                f"environment={str(self.folder)!r} has no bin/python: create it with"
                f" `{setup_command(self.folder)}`"
            )
        return self.python

    def holds(self, config: VBenchConfig) -> bool:
        """Return whether the environment exists, including VBench's list of prompts if it is
        needed.

        Args:
            config: Settings of the evaluation.

        Returns:
            True if the evaluation can use it.
        """
        if config.custom or config.suite == "i2v":
            return self.python.exists()
        return self.python.exists() and self.full_info is not None and self.full_info.is_file()

    def _package(self, name: str) -> Path | None:
        return next(self.folder.glob(f"lib/python3*/site-packages/{name}"), None)

    @property
    def full_info(self) -> Path | None:
        """VBench's list of prompts; None if the package is not installed."""
        package = self._package("vbench")
        return package / "VBench_full_info.json" if package else None

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of the optional packages that are installed."""
        return tuple(name for name in ("detectron2",) if self._package(name))


def find_environment(config: VBenchConfig) -> Environment:
    """Return the environment of a config. A relative folder is also looked up in the repository
    clone.

    Args:
        config: Settings of the evaluation.

    Returns:
        The environment, which may not exist.
    """
    folder = Path(config.environment)
    in_clone = SETUP_IN_CLONE.parents[1] / folder
    elsewhere = not folder.is_dir() and SETUP_IN_CLONE.is_file() and in_clone.is_dir()
    return Environment(in_clone if elsewhere else folder)


def setup_command(folder: Path) -> str:
    """Return the command that creates the environment, for a clone or an installed package.

    Args:
        folder: Folder of the environment.

    Returns:
        A shell command.
    """
    script = SETUP_IN_CLONE if SETUP_IN_CLONE.is_file() else SETUP
    with contextlib.suppress(ValueError):
        script = script.relative_to(Path.cwd())
    return shlex.join(["bash", str(script), str(folder)])


def ready(config: VBenchConfig, entries: list[Entry]) -> Preflight:
    """Check which dimensions can be scored with the files that exist.

    Args:
        config: Settings of the evaluation.
        entries: Prompts of the suite.

    Returns:
        Available dimensions, and what the others lack.
    """
    known = SUITES[config.suite].dimensions
    names = [name for name in known if any(name in entry.dimensions for entry in entries)]
    cache = Path(config.cache) if config.cache else default_cache()
    checked = preflight(
        names,
        needs_of(static_filter=config.filtered),
        cache.resolve(),
        packages=find_environment(config).packages,
    )
    images = _missing_images(config, entries)
    if images is None:
        return checked
    missing = {name: (*checked.missing.get(name, ()), images) for name in names}
    return Preflight((), missing, checked.cache)


def _missing_images(config: VBenchConfig, entries: list[Entry]) -> Needed | None:
    """Return what VBench-I2V's image suite lacks; None if no image is missing."""
    images = list(dict.fromkeys(entry.image for entry in entries if entry.image))
    lacking = [image for image in images if not Path(image).is_file()]
    if not lacking:
        return None
    place = crops_of(config).resolve()
    example = Path(lacking[0]).name
    path = f"{place} ({len(lacking)} of {len(images)} images, e.g. {example!r})"
    return Needed(path, SOURCE, manual=True)


def score_folder(
    videos: Path,
    out: Path,
    config: VBenchConfig,
    entries: list[Entry],
    checked: Preflight,
    digests: Mapping[str, str],
    devices: list[str],
) -> Scores:
    """Score the videos in a folder on all available dimensions.

    temporal_flickering has no scores if the filter finds no static video.

    Args:
        videos: Folder of the videos.
        out: Folder for requests, logs and results.
        config: Settings of the evaluation.
        entries: Prompts of the suite.
        checked: Available dimensions.
        digests: Result of `check_videos`.
        devices: CUDA device numbers, or "cpu"; one worker runs on each.

    Returns:
        Scores by dimension and file.

    Raises:
        RuntimeError: Workers crashed. The message names their dimensions.
    """
    python = find_environment(config).find_python()
    if config.suite == "i2v" and config.custom:
        pngs = write_pngs([entry.image for entry in entries], out / PNGS)
        entries = [replace(entry, image=pngs[entry.image]) for entry in entries]
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def job(name: str) -> dict[str, float]:
        device = free.get()
        try:
            return _score_dimension(
                name, python, device, videos, out / name, config, entries, checked.cache, digests
            )
        finally:
            free.put(device)

    scores: Scores = {}
    failures: list[str] = []
    shown = progress(f"scoring {videos.name}", total=len(checked.ready), unit="dimension")
    with ThreadPoolExecutor(len(devices)) as pool, shown as bar:
        jobs = {name: pool.submit(job, name) for name in checked.ready}
        try:
            for name, future in jobs.items():
                try:
                    scores[name] = future.result()
                except (RuntimeError, ValueError) as error:
                    failures.append(str(error))
                bar.update()
        except BaseException:  # Ctrl-C stops running workers; waiting ones must not start
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise RuntimeError("; ".join(failures))
    return scores


def _score_dimension(
    name: str,
    python: Path,
    device: str,
    videos: Path,
    out: Path,
    config: VBenchConfig,
    entries: list[Entry],
    cache: Path,
    digests: Mapping[str, str],
) -> dict[str, float]:
    mine = [entry for entry in entries if name in entry.dimensions]
    files = {file: digests[file] for entry in mine for file in files_of(entry, config.video.frames)}
    request = _request(name, videos, out, config, mine, cache)
    digest = hashlib.sha256(
        json.dumps([request, files, WORKER.read_text()], sort_keys=True).encode()
    ).hexdigest()
    request |= {"device": "cpu" if device == "cpu" else "cuda", "digest": digest}
    path = out / "request.json"
    done = (
        path.is_file()
        and (out / RESULT).is_file()
        and json.loads(path.read_text()).get("digest") == digest
    )
    if not done:
        (out / RESULT).unlink(missing_ok=True)
        write_json(path, request)
        _work(name, python, device, path)
        note_saved_work()
    kept = _static(out, files) if request["static_filter"] else list(files)
    return read_scores(out / RESULT, {name: kept})[name]


def _request(
    name: str, videos: Path, out: Path, config: VBenchConfig, entries: list[Entry], cache: Path
) -> dict:
    """Return the request for a worker."""
    filtered = config.filtered and name == "temporal_flickering"
    return {
        "out": str(out.resolve()),
        "dimensions": [name],
        "long": config.long,
        "static_filter": filtered,
        "cache": str(cache),
        "suite": config.suite,
        "clip_seconds": {key: dimension.clip_seconds for key, dimension in FACTS.items()},
        "entries": [
            {
                "prompt_en": entry.prompt,
                "dimension": [name],
                "auxiliary_info": entry.auxiliary,
                "image_name": str(Path(entry.image).resolve()) if entry.image else "",
                "video_list": [
                    str((videos / file).resolve()) for file in files_of(entry, config.video.frames)
                ],
            }
            for entry in entries
        ],
    }


def _work(name: str, python: Path, device: str, request: Path) -> None:
    """Run a worker. It succeeded if its result exists, because the package may crash and still
    return 0.
    """
    log = request.parent / LOG
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    with log.open("w") as file:
        done = subprocess.run(
            [str(python), str(WORKER), str(request)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    if done.returncode or not (request.parent / RESULT).is_file():
        last = (log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"])[-1]
        raise RuntimeError(
            f"{name}: VBench's worker exited with status {done.returncode} without a result"
            f" ({last}): see {log}"
        )


def _static(out: Path, files: Mapping[str, str]) -> list[str]:
    """Return the videos that the filter kept, which may be none."""
    kept = {
        Path(path)
        for entry in json.loads((out / "scores_full_info.json").read_text())
        for path in entry["video_list"]
    }
    names = {
        path.parent.name + ".mp4" if "split_clip" in path.parts else path.name for path in kept
    }
    return [file for file in files if file in names]
