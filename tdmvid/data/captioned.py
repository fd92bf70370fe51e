"""Read folders of videos or images with a caption file next to each one: a.mp4 and a.txt."""

from __future__ import annotations

from pathlib import Path

from ..config.resources import find_prompts
from .files import short
from .media_folders import IMAGES, VIDEOS, media_files, split_files
from .prompt_text import check_prompt, is_empty, read_text


def find_source(name: Path | str) -> Path:
    """Find the source of prompts.

    A folder of samples, which has no captions, does not hide a built-in list of the same name.

    Args:
        name: Path of a file or folder, or name of a built-in or generated list or a data set.

    Returns:
        The file of a built-in list, unless a folder of this name has a captioned video or image.
        Any other path or name is returned unchanged.
    """
    found, folder = find_prompts(name), Path(name)
    if found != folder and folder.is_dir():
        media = split_files(folder, IMAGES | VIDEOS)[0]
        return folder if any(file.with_suffix(".txt").is_file() for file in media) else found
    return found


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
        ValueError: If the folder contains none, or a caption is missing, empty or no text.
    """
    pairs, lacking = [], []
    for file in media_files(folder, IMAGES | VIDEOS):
        text = file.with_suffix(".txt")
        caption = " ".join(read_text(text).split()) if text.is_file() else ""
        if not is_empty(caption):
            pairs.append((file, check_prompt(caption, str(text))))
        else:
            lacking.append(file)
    if lacking:
        text = lacking[0].with_suffix(".txt")
        raise ValueError(
            f"{folder}: {len(lacking):,} of {len(pairs) + len(lacking):,} videos and images have no"
            f" caption, e.g. {short(str(lacking[0].relative_to(folder)))}, whose {short(text.name)}"
            f" is {'empty' if text.is_file() else 'missing'}: write one .txt file next to each"
        )
    return pairs
