"""Put samples into pages: a sample lies inside its folder, and is a real video or image.

A page is sent to other people, so a name that a file merely claims must not decide what it holds.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .files import short

DEMUXERS = {".mp4": "mp4", ".webm": "matroska"}
"""Ending of a video -> the one format it is read as: ffmpeg left to guess would take a playlist for
a video and open the files that it names.
"""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
FORMATS = ("PNG", "JPEG", "MPO", "GIF", "WEBP")


@dataclass(frozen=True)
class Media:
    """A video or image for a page: its element, and its bytes as a data URI."""

    kind: str
    """Whether it is a "video" or an "image"."""
    source: str


def file_inside(folder: Path, name: object) -> Path:
    """Return the file that a manifest's entry means.

    Args:
        folder: the folder of the manifest.
        name: the entry's file, relative to it; anything that JSON can hold.

    Raises:
        ValueError: unless it lies inside the folder, with all symbolic links followed.
    """
    remedy = "remove the entry, or copy the file into the folder"
    if not isinstance(name, str) or not name or Path(name).is_absolute():
        raise ValueError(f"{folder}: {short(name)} is no name of a file in this folder: {remedy}")
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL character
        raise ValueError(f"{folder}: {short(name)} names no file ({error}): {remedy}") from None
    if not inside:
        raise ValueError(f"{folder}: {short(name)} lies outside of this folder: {remedy}")
    return folder / name


def check_ending(path: Path) -> None:
    """Raise ValueError unless the file's ending is one of those that browsers show."""
    if path.suffix.lower() not in (*DEMUXERS, *PICTURES):
        known = ", ".join((*DEMUXERS, *PICTURES))
        raise ValueError(f"{path} cannot be shown in a page: use one of {known}")


def embed(path: Path) -> Media:
    """Read a video or image for a page.

    Raises:
        ValueError: unless its content is that of a video or image.
    """
    check_ending(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is no file: sample it again")
    data = path.read_bytes()
    try:
        suffix = path.suffix.lower()
        kind = _video_type(data, suffix) if suffix in DEMUXERS else _image_type(data)
    except Exception as error:  # decoders raise anything
        raise ValueError(
            f"{path}: not a readable video or image ({short(str(error))}): sample it again"
        ) from error
    return Media(
        kind.partition("/")[0], f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    )


def is_whole(path: Path, *, frames: int, height: int, width: int) -> bool:
    """Return whether a sample can be read to its end and has so many frames of this size; an odd
    side of a video may have been made even.
    """
    import av

    try:
        if frames == 1:
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return (image.height, image.width) == (height, width)
        with av.open(str(path), "r", format=DEMUXERS[path.suffix.lower()]) as container:
            stream = container.streams.video[0]
            next(container.decode(stream))
            container.seek(0)
            packets = sum(packet.size > 0 for packet in container.demux(stream))
            found = (packets, stream.height, stream.width)
            return found == (frames, height + height % 2, width + width % 2)
    except Exception:  # decoders raise anything
        return False


def _image_type(data: bytes) -> str:
    """Return the media type of an image, whose pixels it decodes."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        return "image/jpeg" if image.format == "MPO" else Image.MIME[str(image.format)]


def _video_type(data: bytes, suffix: str) -> str:
    """Return the media type of a video, whose first frame it decodes."""
    import av  # loads a second ffmpeg beside decord's; only who needs it

    with av.open(io.BytesIO(data), "r", format=DEMUXERS[suffix]) as container:
        next(container.decode(video=0))
    return f"video/{suffix[1:]}"
