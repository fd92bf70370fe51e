"""Download the weights that VBench's dimensions need before scoring (`--download`).

Files are downloaded atomically. A failed download does not stop the others.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from ..data.files import atomic_path
from .preflight import Needed, Preflight

SECONDS = 60
"""Seconds after which a silent server counts as failed."""
HUB, GIT = "hub:", "git+"
OTHER_FRAMEWORKS = ["*.h5", "*.msgpack", "*.ot", "*.onnx", "*.mlmodel", "coreml/*"]


def download(checked: Preflight, python: Path) -> dict[str, str]:
    """Download all missing files and packages.

    Args:
        checked: What is missing.
        python: Python interpreter of the VBench environment, to install packages into.

    Returns:
        Reasons of failed downloads, by path.
    """
    failed: dict[str, str] = {}
    for need in dict.fromkeys(need for needs in checked.missing.values() for need in needs):
        if need.manual:
            failed[need.path] = f"get it from {need.source}"
            continue
        print(f"downloading {need.path} from {need.fetched_from}", flush=True)
        try:
            _fetch(need, checked.cache / need.path, python)
        except Exception as error:  # servers, git and pip raise all kinds of errors
            failed[need.path] = f"{type(error).__name__}: {error}".split("\n")[0]
    return failed


def _fetch(need: Needed, path: Path, python: Path) -> None:
    """Download one file, folder or package."""
    url = need.fetched_from
    path.parent.mkdir(parents=True, exist_ok=True)
    if need.package:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-build-isolation", url]
        subprocess.run(pip, check=True)
    elif url.startswith(HUB):
        from huggingface_hub import snapshot_download

        name = url.removeprefix(HUB)
        snapshot_download(name, cache_dir=path.parent, ignore_patterns=OTHER_FRAMEWORKS)
    elif url.startswith(GIT):
        with tempfile.TemporaryDirectory(dir=path.parent) as aside:
            clone = ["git", "clone", "--quiet", "--depth", "1", url.removeprefix(GIT)]
            subprocess.run([*clone, f"{aside}/clone"], check=True)
            shutil.rmtree(path, ignore_errors=True)
            Path(aside, "clone").rename(path)
    elif url.endswith(".zip") and not path.suffix:
        _fetch_folder(url, path)
    elif url.endswith(".zip"):
        _fetch_member(url, path)
    else:
        with atomic_path(path) as part:
            _fetch_file(url, part)


def _fetch_folder(url: str, path: Path) -> None:
    """Download an archive and unpack all of it into a folder."""
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        archive = Path(aside, "archive.zip")
        _fetch_file(url, archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(Path(aside, "folder"))
        shutil.rmtree(path, ignore_errors=True)
        Path(aside, "folder").rename(path)


def _fetch_member(url: str, path: Path) -> None:
    """Download a file from an archive, found by its name."""
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        archive = Path(aside, "archive.zip")
        _fetch_file(url, archive)
        with zipfile.ZipFile(archive) as packed:
            names = [name for name in packed.namelist() if Path(name).name == path.name]
            if not names:
                raise ValueError(f"{url} has no {path.name}")
            with atomic_path(path) as part:
                part.write_bytes(packed.read(names[0]))


def _fetch_file(url: str, path: Path) -> None:
    """Download a complete file. An HTML page instead of the file is an error."""
    request = urllib.request.Request(url, headers={"User-Agent": "tdmvid"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
        promised = answer.headers.get("Content-Length")
    size = path.stat().st_size
    with path.open("rb") as file:
        is_page = file.read(64).lstrip()[:5].lower() in (b"<!doc", b"<html")
    if is_page or size == 0 or (promised and size != int(promised)):
        raise ValueError(f"received {size} of {promised or 'unknown'} bytes, or a web page")
