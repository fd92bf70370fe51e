"""Items, the inputs of samples: a prompt and, for an image-to-video model, a first frame.

For a video file, the first frame is used. Images are scaled to cover the height and width of the
clip, and center-cropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import ClipSize, LogConfig, PromptConfig, RunConfig
from .captioned import find_source, read_captioned
from .files import short
from .media import file_inside
from .media_folders import IMAGES, VIDEOS, media_files
from .prompt_kinds import SETTINGS_OF, kind_of
from .prompt_sets import HubSet, check_no_part
from .prompts import COLUMN, IMAGE_COLUMN, TABLES, check_given, read_rows, read_training_prompts
from .video import read_clip

MANIFEST = "manifest.jsonl"
"""File that `tdmvid sample` writes next to its samples, with prompt and file of each."""
TABLE_SETTINGS = ("column", "image_column", "skip_empty")
"""Settings that only some sources of prompts have."""
IMAGES_REMEDY = (
    "or make images of the prompts with `tdmvid sample` and an image model, and set prompts.images"
    " to their folder"
)


@dataclass(frozen=True)
class Item:
    """Input of a sample."""

    prompt: str
    """The prompt."""
    image: Path | None = None
    """File of the first frame; None for a model without image input."""


def read_items(config: PromptConfig, *, images: bool, remedy: str = IMAGES_REMEDY) -> list[Item]:
    """Read the items that a run trains on.

    Args:
        config: Settings of the prompts.
        images: Whether each item has an image, from a column of a table with paths relative to its
            folder, or from `config.images`.
        remedy: Alternative to a table that an error message suggests.

    Returns:
        The items in order.

    Raises:
        ValueError: If the file is invalid, or images are needed and missing.
        FileNotFoundError: If the file does not exist.
    """
    check_given(config)
    _refuse_ignored(config, images=images)
    if not images:
        return [Item(prompt) for prompt in read_training_prompts(config)]
    if config.images:
        return _made_items(read_training_prompts(config), config)
    path = find_source(config.path)
    if path.exists():
        check_no_part(path, HubSet(config.subset, config.split, config.revision))
    if path.is_dir():
        pairs = read_captioned(path)
        return [Item(caption, file) for file, caption in pairs[: config.limit or None]]
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise ValueError(
            f"prompts.path={short(config.path)} has no images, which this model starts from: use a"
            f" {', '.join(TABLES)} file with the columns {config.column!r} and"
            f" {config.image_column!r} (files of images or videos), {remedy}"
        )
    columns = [(config.column, COLUMN), (config.image_column, IMAGE_COLUMN)]
    rows = read_rows(path, columns, skip_empty=config.skip_empty, limit=config.limit)
    return [Item(prompt, _image_file(path, place, image)) for place, (prompt, image) in rows]


def _refuse_ignored(config: PromptConfig, *, images: bool) -> None:
    """Refuse settings that have no effect on the source of the prompts, or on the model."""
    if config.images and not images:
        raise ValueError(
            f"prompts.images={short(config.images)} has no effect, because this model takes no"
            " image: remove it, or set model.pipeline to the base's image-to-video pipeline, if it"
            " has one"
        )
    kind, default = kind_of(config.path), PromptConfig()
    reasons = {name: f"on {short(config.path)}, which is a {kind}" for name in TABLE_SETTINGS}
    reasons = {name: reasons[name] for name in reasons if name not in SETTINGS_OF[kind]}
    if config.images:
        reasons["image_column"] = "beside prompts.images"
    elif not images:
        reasons["image_column"] = "because this model takes no image"
    for name, reason in reasons.items():
        if (value := getattr(config, name)) != getattr(default, name):
            raise ValueError(f"prompts.{name}={short(value)} has no effect {reason}: remove it")


def _made_items(prompts: list[str], config: PromptConfig) -> list[Item]:
    """Return prompts with the first image of each that `tdmvid sample` has made."""
    folder = Path(config.images)
    remedy = (
        "make them with an image model: tdmvid sample --model MODEL --size 1xHxW --prompts"
        f" {short(config.path)} --out {short(config.images)}"
    )
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"prompts.images={short(config.images)} has no {MANIFEST}: {remedy}")
    named = f"prompts.images={short(config.images)}"
    files = _images_of(prompts, _made_images(folder), named, remedy)
    return [Item(prompt, file) for prompt, file in zip(prompts, files, strict=True)]


def _images_of(
    prompts: Sequence[str], made: Mapping[str, Path], named: str, remedy: str
) -> list[Path]:
    """Return the image of each prompt.

    Args:
        prompts: The prompts.
        made: Images by prompt.
        named: Setting and folder, for the message.
        remedy: What helps if images are missing.

    Raises:
        ValueError: A prompt has no image.
    """
    lacking = [prompt for prompt in prompts if prompt not in made]
    lacking += [prompt for prompt in prompts if prompt in made and not made[prompt].is_file()]
    if lacking:
        raise ValueError(
            f"{named} has no image for {len(lacking):,} of {len(prompts):,} prompts, e.g."
            f" {short(lacking[0])}: {remedy}"
        )
    return [made[prompt] for prompt in prompts]


def _made_images(folder: Path) -> dict[str, Path]:
    """Return the first image of each prompt in an output folder of `tdmvid sample`."""
    made: dict[str, Path] = {}
    for _, (prompt, name) in read_rows(folder / MANIFEST, [("prompt", ""), ("file", "")]):
        made.setdefault(prompt, file_inside(folder, name))
    return made


def _image_file(table: Path, place: str, name: str) -> Path:
    file = table.parent / name
    if not file.is_file():
        raise ValueError(
            f"{table}, {place}: image {short(name)} does not exist in {table.parent}: write a path"
            " relative to the table, or an absolute path"
        )
    return file


def pair_items(
    prompts: Sequence[str], images: Sequence[Path | str], *, takes_images: bool, setting: str
) -> list[Item]:
    """Combine prompts with images.

    Args:
        prompts: The prompts.
        images: Image files: one per prompt, or one for all.
        takes_images: Whether the model takes images.
        setting: Name of the images in error messages.

    Returns:
        One item per prompt.

    Raises:
        ValueError: If the number of images does not fit, a file does not exist, or the model takes
            no images.
    """
    if not takes_images:
        if images:
            raise ValueError(
                f"{setting}={short(str(images[0]))} has no effect, because this model takes no"
                " image: remove it"
            )
        return [Item(prompt) for prompt in prompts]
    if len(images) not in (1, len(prompts)):
        raise ValueError(
            f"{setting}: {len(images)} images for {len(prompts)} prompts, but this model starts"
            " from an image: use one image per prompt, or one for all"
        )
    files = [Path(image) for image in images]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"{setting}={short(str(file))} does not exist: use an image or a video file"
            )
    if len(files) == 1:
        files *= len(prompts)
    return [Item(prompt, file) for prompt, file in zip(prompts, files, strict=True)]


def find_images(path: Path, prompts: Sequence[str], *, setting: str) -> list[Path]:
    """List the images or videos that prompts start from.

    Args:
        path: A file or a folder.
        prompts: The prompts.
        setting: Name of the path in error messages.

    Returns:
        The file itself; the images that `tdmvid sample` has made of these prompts in the folder; or
        else the images and videos of the folder, sorted by name, 2.png before 10.png.

    Raises:
        ValueError: If the path does not exist, the folder contains none, or `tdmvid sample` has
            made images of some of these prompts in it and not of others.
    """
    if path.is_file():
        return [path]
    made = _made_images(path) if (path / MANIFEST).is_file() else {}
    if any(prompt in made for prompt in prompts):
        return _images_of(prompts, made, f"{setting}={str(path)!r}", "use another folder")
    try:
        return sorted(media_files(path, IMAGES | VIDEOS), key=_natural)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts 2.png before 10.png."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if at % 2 else (-1, part) for at, part in enumerate(parts)]


def gallery_items(log: LogConfig, items: list[Item], *, takes_images: bool) -> list[Item]:
    """Choose the items of a run's samples.

    Args:
        log: Settings of the samples.
        items: Training items.
        takes_images: Whether the model takes images.

    Returns:
        `log.sample_prompts` with their images, or the first training items.

    Raises:
        ValueError: If the sample images do not fit the prompts or the model.
    """
    if not log.sample_prompts:
        return items[: log.sample_count]
    images: list[Path | str] = list(log.sample_images)
    if takes_images and not images:  # repeat the images of the training items
        given = [item.image for item in items if item.image is not None]
        images = [given[place % len(given)] for place in range(len(log.sample_prompts))]
    return pair_items(
        log.sample_prompts, images, takes_images=takes_images, setting="log.sample_images"
    )


def read_run_items(config: RunConfig, *, takes_images: bool) -> tuple[list[Item], list[Item]]:
    """Read the items of a run.

    Args:
        config: Settings of the run.
        takes_images: Whether the model takes images.

    Returns:
        The training items, and the items of the samples.

    Raises:
        ValueError: See `read_items` and `gallery_items`.
        FileNotFoundError: If the prompt file does not exist.
    """
    items = read_items(config.prompts, images=takes_images)
    return items, gallery_items(config.log, items, takes_images=takes_images)


def read_images(files: Iterable[Path], size: ClipSize) -> Tensor:
    """Read first frames in the size of a clip.

    Args:
        files: Image or video files.
        size: Size of the clip.

    Returns:
        Images, [B, 3, H, W] in [-1, 1].
    """
    return torch.cat(
        [
            read_clip(file, frames=1, height=size.height, width=size.width, fps=size.fps)
            for file in files
        ],
        1,
    ).transpose(0, 1)


def file_digest(file: Path) -> str:
    """Hash the content of a file.

    Args:
        file: The file.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
