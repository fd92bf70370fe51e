"""Read folders of videos or images with a caption file next to each one: a.mp4 and a.txt."""

from __future__ import annotations

from pathlib import Path

from .files import short
from .video import IMAGES, VIDEOS, media_files, split_files


def holds_media(folder: Path) -> bool:
    """Check whether a folder or its subfolders contain videos or images.

    Args:
        folder: The folder.

    Returns:
        True if there is at least one.
    """
    return bool(split_files(folder, IMAGES | VIDEOS)[0])


def read_captioned(folder: Path) -> list[tuple[Path, str]]:
    """Read the videos and images of a folder and its subfolders, with their captions.

    Args:
        folder: The folder.

    Returns:
        Pairs of file and caption, sorted by file.

    Raises:
        ValueError: If the folder contains none, or a caption is missing or empty.
    """
    pairs, lacking = [], []
    for file in media_files(folder, IMAGES | VIDEOS):
        text = file.with_suffix(".txt")
        caption = _read(text) if text.is_file() else ""
        if caption:
            pairs.append((file, caption))
        else:
            lacking.append(text)
    if lacking:
        raise ValueError(
            f"{folder}: {len(lacking):,} of {len(pairs) + len(lacking):,} videos and images have no"
            f" caption, e.g. {short(str(lacking[0].relative_to(folder)))} is missing or empty:"
            " write one .txt file next to each"
        )
    return pairs


def _read(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save the file as UTF-8") from None
