"""Video and image files.

Shapes: F frames, H height, W width, N videos; pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from .files import atomic_path

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp"}


def read_video(path: Path, *, frames: int | None = None, fps: float | None = None) -> Tensor:
    """The first `frames` frames of a video (all by default), [3, F, H, W] float32 in [-1, 1]; with
    `fps`, at that rate.

    Decoded by decord, by PyAV where decord is missing or cannot. Raises FileNotFoundError, or
    ValueError for what is no video and for one of fewer frames.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if frames is not None and frames < 1:
        raise ValueError(f"frames={frames}: read at least one, or None for all")
    if fps is not None and (fps <= 0 or frames is None):
        raise ValueError(
            f"fps={fps}, frames={frames}: a rate is positive and takes a number of frames"
        )
    return _unit(_decode(path, frames, fps)).permute(1, 0, 2, 3).contiguous()


def read_clip(path: Path, *, frames: int, height: int, width: int, fps: float) -> Tensor:
    """The beginning of a video, or an image where `frames` is 1, scaled to cover height x width and
    cut to its middle.

    [3, F, H, W] in [-1, 1]. Raises FileNotFoundError, or ValueError for what cannot be read and for
    a video that is too short, or slower than `fps`.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGES:
        pixels = _decode(path, frames, fps if frames > 1 else None)
    elif frames == 1:
        pixels = read_image(path)[None]
    else:
        raise ValueError(f"{path} is an image, {frames} frames are needed: give videos")
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    size = max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = []
    for some in np.array_split(
        pixels, -(-len(pixels) // 8)
    ):  # a whole large video in float32 would be gigabytes
        scaled = functional.interpolate(_unit(some), size, mode="bilinear", antialias=True)
        cut.append(scaled[:, :, top : top + height, left : left + width].clamp(-1, 1))
    return torch.cat(cut).transpose(0, 1).contiguous()


def read_image(path: Path) -> np.ndarray:
    """[H, W, 3] uint8, upright, transparent parts on white; ValueError for what is no image of 8
    bits a colour.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{path}: an image of mode {image.mode}: convert it to 8 bits a colour"
                )
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def media_files(folder: Path, kinds: set[str]) -> list[Path]:
    """Every file of these endings in a folder and the folders below it, hidden ones aside, by name;
    ValueError if there is none.
    """
    kinds_named = ", ".join(sorted(kinds))
    if not Path(folder).is_dir():
        raise ValueError(f"{str(folder)!r} is no folder: give one with {kinds_named} files")
    found = sorted(
        p
        for p in Path(folder).rglob("*")
        if p.suffix.lower() in kinds and p.is_file() and not p.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{str(folder)!r} holds no {kinds_named} file")
    return found


def write_video(path: Path, video: Tensor, *, fps: float, lossless: bool = False) -> None:
    """Writes [3, F, H, W] in [-1, 1] as H.264 in an mp4 file that browsers play, atomically.

    H.264 with 4:2:0 colours has even sizes only: an odd side gains a copy of its last row or
    column. lossless: to a rounding of the colours, in 4:4:4, which not every browser plays. Raises
    ValueError for another shape, values that are not finite, and fps <= 0.
    """
    import av  # loads a second ffmpeg beside decord's; only who needs it

    if fps <= 0:
        raise ValueError(f"fps={fps}: must be positive")
    pixels = _pixels(video, "3FHW")
    height, width = pixels.shape[-2:]
    pixels = functional.pad(pixels, (0, width % 2, 0, height % 2), mode="replicate")
    images = _uint8(pixels).permute(1, 2, 3, 0).numpy()
    options = {"movflags": "+faststart"}
    with (
        atomic_path(path) as part,
        av.open(str(part), "w", format="mp4", options=options) as container,
    ):
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv444p" if lossless else "yuv420p"
        stream.options = {"crf": "0" if lossless else "12"}
        _tag_bt601(stream.codec_context)
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_image(path: Path, image: Tensor) -> None:
    """Writes [3, H, W] in [-1, 1] as PNG, atomically; raises ValueError as write_video does."""
    pixels = _uint8(_pixels(image, "3HW"))
    with atomic_path(path) as part:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(part, format="PNG")


def write_clips(folder: Path, videos: Tensor, fps: float) -> list[str]:
    """Write one mp4 per video, or a PNG for a single frame, named by its place in the batch.

    Args:
        folder: where the files go; it is made.
        videos: [B, 3, F, H, W] in [-1, 1].
        fps: frames per second.

    Returns:
        Names relative to the parent of `folder`.
    """
    names = []
    for index, video in enumerate(videos):
        if video.shape[1] == 1:
            path = folder / f"{index}.png"
            write_image(path, video[:, 0])
        else:
            path = folder / f"{index}.mp4"
            write_video(path, video, fps=fps)
        names.append(f"{folder.name}/{path.name}")
    return names


def few_frames(videos: Tensor, count: int = 9) -> Tensor:
    """[..., F, H, W]: at most so many of the frames, evenly spaced, the first and the last among
    them.
    """
    frames = videos.shape[-3]
    return videos[..., torch.linspace(0, frames - 1, min(frames, count)).round().long(), :, :]


def write_strip(path: Path, videos: Tensor, *, width: int = 1200, group: int = 0) -> None:
    """Writes [N, 3, F, H, W] in [-1, 1] as one PNG: a row a video, nine of its frames side by side,
    white lines between.

    Images (F = 1) stand side by side themselves. The frames are as large as `width` pixels in all
    allow, small ones repeated a whole number of times. group: so many videos belong together: a
    wider line follows them, and a new row of images.
    """
    videos = few_frames(_pixels(videos, "N3FHW"))
    if videos.shape[2] == 1:
        columns = group or len(videos)
        videos, group = videos.squeeze(2).unflatten(0, (-1, columns)).transpose(1, 2), 0
    columns, (height, side) = videos.shape[2], videos.shape[3:]
    room = (width - columns + 1) // columns
    if side > room:
        size = max(1, round(height * room / side)), max(1, room)
        frames = functional.interpolate(
            videos.transpose(1, 2).flatten(0, 1), size, mode="bilinear", antialias=True
        )
        videos = frames.unflatten(0, (-1, columns)).transpose(1, 2)
    rows = [
        torch.cat([functional.pad(frame, (0, 1), value=1.0) for frame in video.unbind(1)], 2)[
            ..., :-1
        ]
        for video in videos
    ]
    lines = [4 if group and (row + 1) % group == 0 else 1 for row in range(len(rows) - 1)] + [0]
    strip = torch.cat(
        [functional.pad(row, (0, 0, 0, line), value=1.0) for row, line in zip(rows, lines)], 1
    )
    scale = max(1, width // strip.shape[2])
    write_image(path, strip.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2))


def _decode(path: Path, frames: int | None, fps: float | None) -> np.ndarray:
    """[F, H, W, 3] uint8; raises ValueError for what is no video and for one that is too short or
    too slow.
    """
    try:
        found = _decode_decord(path, frames, fps)
    except (
        Exception
    ):  # not installed, or it cannot (width 48, say); what is wrong, PyAV says better
        found = _decode_av(path, frames, fps)
    pixels, wanted = found
    rate = f" at {fps:g} frames a second" if fps else ""
    if frames is not None and len(wanted) < frames:
        raise ValueError(
            f"{path}: has {len(wanted)} frames{rate}, {frames} are needed: use a longer video or"
            " fewer frames"
        )
    if fps and frames and len(set(wanted)) < 0.9 * frames:
        raise ValueError(
            f"{path}: shows {len(set(wanted))} different frames where {frames} are needed{rate}:"
            " use a faster video or a lower rate"
        )
    return pixels


def _decode_decord(
    path: Path, frames: int | None, fps: float | None
) -> tuple[np.ndarray, list[int]]:
    """[F, H, W, 3] uint8 and which frames they are, fewer than `frames` where the file has fewer;
    raises anything.
    """
    import decord  # has no wheels for some platforms

    reader = decord.VideoReader(str(path), num_threads=1)
    count = len(reader)
    wanted = list(range(count)) if frames is None else list(range(min(frames, count)))
    if fps:
        wanted = _on_screen(reader.get_frame_timestamp(range(count))[:, 0], frames, fps)
    return reader.get_batch(wanted).asnumpy(), wanted


def _decode_av(path: Path, frames: int | None, fps: float | None) -> tuple[np.ndarray, list[int]]:
    """The same; raises ValueError for what is no video."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            wanted = _on_screen(_times(container), frames, fps) if fps else None
            container.seek(0)
            decoded = islice(container.decode(video=0), wanted[-1] + 1 if wanted else frames)
            copies = Counter(wanted or ())
            images = [
                frame.to_ndarray(format="rgb24")
                for n, frame in enumerate(decoded)
                for _ in range(copies[n] if wanted else 1)
            ]
        return np.stack(images), wanted or list(range(len(images)))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path}: not a readable video ({error}): it may be cut short; write it again"
        ) from error


def _times(container) -> list[float]:
    """When each frame is shown, in seconds, from the packets alone."""
    stream = container.streams.video[0]
    return sorted(
        float(packet.pts * stream.time_base)
        for packet in container.demux(stream)
        if packet.pts is not None
    )


def _on_screen(shown: Sequence[float], frames: int | None, fps: float) -> list[int]:
    """Which frames are on the screen every 1 / fps seconds, for `frames` such moments or as long as
    the video lasts.
    """
    assert frames is not None, "a rate comes with a number of frames"
    times = np.asarray(shown, dtype=float) - shown[0]
    end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0)
    moments = np.arange(frames) / fps
    moments = moments[(moments < end - 1e-3) | (moments == 0)]
    return (
        np.searchsorted(times, moments + 1e-3, side="right") - 1
    ).tolist()  # times are rounded to a millisecond


def _unit(pixels: np.ndarray) -> Tensor:
    """[F, H, W, 3] uint8 -> [F, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _tag_bt601(codec) -> None:
    # ffmpeg converts RGB by BT.601; untagged, players guess BT.709 for large videos and shift
    # colours.
    codec.colorspace = 6
    codec.color_primaries = 6
    codec.color_trc = 6
    codec.color_range = 1


def _pixels(x: Tensor, axes: str) -> Tensor:
    """x in float32 on the CPU, checked to have the axes, for instance "3FHW", and finite values."""
    if x.ndim != len(axes) or x.shape[axes.index("3")] != 3 or x.numel() == 0:
        raise ValueError(
            f"shape {list(x.shape)}: must be [{', '.join(axes)}], not empty, with 3 for RGB"
        )
    x = x.detach().float().cpu()
    if not x.isfinite().all():
        raise ValueError(
            f"{int((~x.isfinite()).sum())} of {x.numel()} pixel values are not finite: nothing to"
            " write"
        )
    return x


def _uint8(x: Tensor) -> Tensor:
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
