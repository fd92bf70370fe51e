"""Embed samples in HTML pages, after checking that they are videos or images in their folder.

Pages are sent to other people. Therefore the content of a file is checked, not only its name.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .files import short

DEMUXERS = {".mp4": "mp4", ".webm": "matroska"}
"""Suffix of a video -> the only format that it is read as.

If ffmpeg detected the format, it would accept a playlist as a video and open the files in it.
"""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
"""Formats that are read. JPEG includes MPO, several JPEG images in one file."""


@dataclass(frozen=True)
class Media:
    """A video or image for an HTML page."""

    kind: str
    """ "video" or "image"."""
    source: str
    """Content as a data URI."""


def file_inside(folder: Path, name: object) -> Path:
    """Resolve a file name of a manifest.

    Args:
        folder: Folder of the manifest.
        name: File name relative to the folder; any JSON value.

    Returns:
        The path of the file.

    Raises:
        ValueError: If it is not a file name, or the file is outside the folder after following
            symbolic links.
    """
    remedy = "remove the entry, or copy the file into the folder"
    if not isinstance(name, str) or not name or Path(name).is_absolute():
        raise ValueError(f"{folder}: {short(name)} is not a file name in this folder: {remedy}")
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL character
        raise ValueError(f"{folder}: {short(name)} is not a file ({error}): {remedy}") from None
    if not inside:
        raise ValueError(f"{folder}: {short(name)} is outside this folder: {remedy}")
    return folder / name


def check_ending(path: Path) -> None:
    """Check that browsers can show a file, by its suffix.

    Args:
        path: The file.

    Raises:
        ValueError: If the suffix is not supported.
    """
    if path.suffix.lower() not in (*DEMUXERS, *PICTURES):
        known = ", ".join((*DEMUXERS, *PICTURES))
        raise ValueError(f"{path} cannot be shown in a page: use one of {known}")


def embed(path: Path) -> Media:
    """Read a video or image for an HTML page.

    Args:
        path: The file.

    Returns:
        The video or image as a data URI.

    Raises:
        ValueError: If the file does not exist, or its content is not a video or image.
    """
    check_ending(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file: sample it again")
    data = path.read_bytes()
    try:
        suffix = path.suffix.lower()
        kind = _video_type(data, suffix) if suffix in DEMUXERS else _image_type(data)
    except Exception as error:  # decoders raise many types of errors
        raise ValueError(
            f"{path}: not a readable video or image ({short(str(error))}): sample it again"
        ) from error
    return Media(
        kind.partition("/")[0], f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    )


def is_whole(path: Path, *, frames: int, height: int, width: int) -> bool:
    """Check that a sample is complete and has the expected size.

    Args:
        path: Image file, if `frames` is 1, or video file.
        frames: Expected number of frames.
        height: Expected height in pixels; videos are padded to even sizes.
        width: Expected width in pixels; videos are padded to even sizes.

    Returns:
        True if the file can be read to its end and has the size.
    """
    import av

    try:
        if frames == 1:
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return (image.height, image.width) == (height, width)
        with av.open(str(path.absolute()), "r", format=DEMUXERS[path.suffix.lower()]) as container:
            stream = container.streams.video[0]
            next(container.decode(stream))
            container.seek(0)
            packets = sum(packet.size > 0 for packet in container.demux(stream))
            found = (packets, stream.height, stream.width)
            return found == (frames, height + height % 2, width + width % 2)
    except Exception:  # decoders raise many types of errors
        return False


def _image_type(data: bytes) -> str:
    """Decode an image, and return its media type."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        return "image/jpeg" if image.format == "MPO" else Image.MIME[str(image.format)]


def _video_type(data: bytes, suffix: str) -> str:
    """Decode the first frame of a video, and return its media type."""
    import av  # loads a second ffmpeg in addition to decord's, so import it only when needed

    with av.open(io.BytesIO(data), "r", format=DEMUXERS[suffix]) as container:
        next(container.decode(video=0))
    return f"video/{suffix[1:]}"
