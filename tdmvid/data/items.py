"""What a sample is made from: a prompt, and for an image-to-video model its first frame.

An image is a picture, or a video whose first frame is taken. It is scaled to cover the clip's
height and width, and cut to its middle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import ClipSize, LogConfig, PromptConfig, RunConfig
from ..config.resources import find_prompts
from .captioned import read_captioned
from .files import short
from .media import file_inside
from .prompts import TABLES, read_rows, read_training_prompts
from .video import IMAGES, VIDEOS, media_files, read_clip

MANIFEST = "manifest.jsonl"
"""What `tdmvid sample` writes beside its samples: a line for each, with prompt and file."""


IMAGES_REMEDY = (
    "or make images of the prompts with `tdmvid sample` and an image model and name their folder in"
    " prompts.images"
)


@dataclass(frozen=True)
class Item:
    """A prompt, and the file of its first frame where a model takes one."""

    prompt: str
    image: Path | None = None


def read_items(config: PromptConfig, *, images: bool, remedy: str = IMAGES_REMEDY) -> list[Item]:
    """Return the items that a run trains on.

    Args:
        images: whether each has an image: a column of a table, paths relative to its folder.
        remedy: what else than a table a message proposes.

    Raises:
        ValueError: for what is wrong in the file, or if images are needed and it has none.
        FileNotFoundError: if it is not there.
    """
    if not images:
        if config.images:
            raise ValueError(
                f"prompts.images={short(config.images)} has no effect: this model takes no image,"
                " leave it out"
            )
        return [Item(prompt) for prompt in read_training_prompts(config)]
    path = find_prompts(config.path)
    if config.images:
        return _made_items(read_training_prompts(config), config)
    if path.is_dir():
        pairs = read_captioned(path)
        return [Item(caption, file) for file, caption in pairs[: config.limit or None]]
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise ValueError(
            f"prompts.path={short(config.path)}: this model starts from an image: give a"
            f" {', '.join(TABLES)} file with the columns {config.column!r} and"
            f" {config.image_column!r} (files of images or videos), {remedy}"
        )
    columns = (config.column, config.image_column)
    rows = read_rows(path, columns, skip_empty=config.skip_empty, limit=config.limit)
    return [Item(prompt, _image_file(path, place, image)) for place, (prompt, image) in rows]


def _made_items(prompts: list[str], config: PromptConfig) -> list[Item]:
    """Return prompts with the images that `tdmvid sample` has made of them, the first of each."""
    folder = Path(config.images)
    remedy = (
        f"make them with an image model: tdmvid sample --model MODEL --size 1xHxW --prompts"
        f" {short(config.path)} --out {short(config.images)}"
    )
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"prompts.images={short(config.images)} has no {MANIFEST}: {remedy}")
    made: dict[str, Path] = {}
    for _, (prompt, name) in read_rows(manifest, ("prompt", "file")):
        made.setdefault(prompt, file_inside(folder, name))
    lacking = [prompt for prompt in prompts if prompt not in made]
    lacking += [prompt for prompt in prompts if prompt in made and not made[prompt].is_file()]
    if lacking:
        raise ValueError(
            f"prompts.images={short(config.images)} has no image of {len(lacking):,} of"
            f" {len(prompts):,} prompts, e.g. {short(lacking[0])}: {remedy}"
        )
    return [Item(prompt, made[prompt]) for prompt in prompts]


def _image_file(table: Path, place: str, name: str) -> Path:
    file = table.parent / name
    if not file.is_file():
        raise ValueError(
            f"{table}, {place}: image {short(name)} is no file in {table.parent}: give its path"
            " relative to the table, or an absolute one"
        )
    return file


def pair_items(
    prompts: Sequence[str], images: Sequence[Path | str], *, takes_images: bool, setting: str
) -> list[Item]:
    """Return prompts with their images: one for each, or one for all.

    Args:
        takes_images: whether the model does.
        setting: what a message calls the images.

    Raises:
        ValueError: their number does not fit, one is no file, or the model takes none.
    """
    if not takes_images:
        if images:
            raise ValueError(
                f"{setting}={short(str(images[0]))} has no effect: this model takes no image, leave"
                " it out"
            )
        return [Item(prompt) for prompt in prompts]
    if len(images) not in (1, len(prompts)):
        raise ValueError(
            f"{setting}: {len(images)} images for {len(prompts)} prompts: this model starts from an"
            " image, give one for each prompt, or one for all"
        )
    files = [Path(image) for image in images]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{setting}={short(str(file))} is no file: give an image or a video")
    if len(files) == 1:
        files *= len(prompts)
    return [Item(prompt, file) for prompt, file in zip(prompts, files, strict=True)]


def find_images(path: Path) -> list[Path]:
    """Return a file, or the images and videos of a folder by name.

    Raises:
        ValueError: it is neither, or the folder has none.
    """
    return [path] if path.is_file() else media_files(path, IMAGES | VIDEOS)


def gallery_items(log: LogConfig, items: list[Item], *, takes_images: bool) -> list[Item]:
    """Return the items of a run's samples: `log.sample_prompts`, or the first training items."""
    if not log.sample_prompts:
        return items[: log.sample_count]
    images: list[Path | str] = list(log.sample_images)
    if takes_images and not images:  # those of the first training items, in turn
        given = [item.image for item in items if item.image is not None]
        images = [given[place % len(given)] for place in range(len(log.sample_prompts))]
    return pair_items(
        log.sample_prompts, images, takes_images=takes_images, setting="log.sample_images"
    )


def read_run_items(config: RunConfig, *, takes_images: bool) -> tuple[list[Item], list[Item]]:
    """Return the items that a run trains on, and those of its samples.

    Raises:
        ValueError: as of `read_items` and `gallery_items`.
        FileNotFoundError: if the prompts are not there.
    """
    items = read_items(config.prompts, images=takes_images)
    return items, gallery_items(config.log, items, takes_images=takes_images)


def read_images(files: Iterable[Path], size: ClipSize) -> Tensor:
    """Return first frames in a clip's size: [B, 3, H, W] in [-1, 1]."""
    return torch.cat(
        [
            read_clip(file, frames=1, height=size.height, width=size.width, fps=size.fps)
            for file in files
        ],
        1,
    ).transpose(0, 1)


def image_digest(file: Path) -> str:
    """Identify an image by its content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
