"""Read and write video and image files.

Shapes: F is the number of frames, H the height, W the width, N the number of videos. Pixels are RGB
in [-1, 1].
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from .decode import decode
from .files import atomic_path
from .media_folders import IMAGES


def read_video(path: Path, *, frames: int | None = None, fps: float | None = None) -> Tensor:
    """Read the beginning of a video.

    Args:
        path: Video file.
        frames: Number of frames; None reads all.
        fps: Frames per second to sample at; None uses every frame. Needs `frames`.

    Returns:
        Frames, [3, F, H, W] float32 in [-1, 1].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not a video, or has too few frames.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if frames is not None and frames < 1:
        raise ValueError(f"frames={frames} must be at least 1, or None for all frames")
    if fps is not None and (fps <= 0 or frames is None):
        raise ValueError(
            f"fps={fps}, frames={frames}: fps must be above 0 and needs a number of frames"
        )
    return _unit(decode(path, frames, fps)).permute(1, 0, 2, 3).contiguous()


def read_clip(path: Path, *, frames: int, height: int, width: int, fps: float) -> Tensor:
    """Read the beginning of a video, or an image, and crop it to a size.

    Frames are scaled to cover height x width, and center-cropped.

    Args:
        path: Video file, or image file if `frames` is 1.
        frames: Number of frames F.
        height: Height H in pixels.
        width: Width W in pixels.
        fps: Frames per second to sample at.

    Returns:
        Frames, [3, F, H, W] float32 in [-1, 1].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read, or the video is too short or slower than `fps`.
    """
    path = Path(path)
    if path.suffix.lower() not in IMAGES:
        pixels = decode(path, frames, fps if frames > 1 else None)
    elif frames == 1:
        pixels = read_image(path)[None]
    else:
        raise ValueError(f"{path} is an image, but {frames} frames are needed: use videos")
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    size = max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = []
    for some in np.array_split(
        pixels, -(-len(pixels) // 8)
    ):  # a large video in float32 takes gigabytes, so work on a few frames at a time
        scaled = functional.interpolate(_unit(some), size, mode="bilinear", antialias=True)
        cut.append(scaled[:, :, top : top + height, left : left + width].clamp(-1, 1))
    return torch.cat(cut).transpose(0, 1).contiguous()


def read_frame(path: Path) -> Tensor:
    """Read an image, or the first frame of a video, in its own size.

    Args:
        path: Image or video file.

    Returns:
        Pixels, [3, H, W] float32 in [-1, 1].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read.
    """
    if path.suffix.lower() in IMAGES:
        return _unit(read_image(path)[None])[0]
    return read_video(path, frames=1)[:, 0]


def read_image(path: Path) -> np.ndarray:
    """Read an image, apply its orientation, and put transparent parts on white.

    Args:
        path: Image file.

    Returns:
        Pixels, [H, W, 3] uint8.

    Raises:
        ValueError: If the file is not an image with 8 bits per channel.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{path} is an image of mode {image.mode}: convert it to 8 bits per channel"
                )
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,  # of damaged PNG and AVIF files
        RuntimeError,
    ) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def write_video(path: Path, video: Tensor, *, fps: float, lossless: bool = False) -> None:
    """Write a video as H.264 in an mp4 file that browsers play, atomically.

    H.264 with 4:2:0 chroma needs even sizes, so the last row or column of an odd size is repeated.

    Args:
        path: File to write.
        video: Frames, [3, F, H, W] in [-1, 1].
        fps: Frames per second.
        lossless: Lossless except for rounding of colours, with 4:4:4 chroma. Not every browser
            plays this.

    Raises:
        ValueError: If the shape is wrong, values are not finite, or fps is not above 0.
    """
    import av  # loads a second ffmpeg in addition to decord's, so import it only when needed

    if fps <= 0:
        raise ValueError(f"fps={fps} must be above 0")
    pixels = _pixels(video, "3FHW")
    height, width = pixels.shape[-2:]
    pixels = functional.pad(pixels, (0, width % 2, 0, height % 2), mode="replicate")
    images = _uint8(pixels).permute(1, 2, 3, 0).numpy()
    options = {"movflags": "+faststart"}
    with (
        atomic_path(path) as part,
        av.open(str(part.absolute()), "w", format="mp4", options=options) as container,
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
    """Write an image as PNG, atomically.

    Args:
        path: File to write.
        image: Pixels, [3, H, W] in [-1, 1].

    Raises:
        ValueError: If the shape is wrong, or values are not finite.
    """
    pixels = _uint8(_pixels(image, "3HW"))
    with atomic_path(path) as part:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(part, format="PNG")


def write_clips(folder: Path, videos: Tensor, fps: float) -> list[str]:
    """Write one mp4 file per video, or a PNG per image, named by the index in the batch.

    Args:
        folder: Folder of the files; created if missing.
        videos: Videos, [B, 3, F, H, W] in [-1, 1]; images have F = 1.
        fps: Frames per second.

    Returns:
        File names relative to the parent of `folder`.
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
    """Select evenly spaced frames, including the first and the last.

    Args:
        videos: Videos, [..., F, H, W].
        count: Largest number of frames.

    Returns:
        Videos, [..., min(F, count), H, W].
    """
    frames = videos.shape[-3]
    return videos[..., torch.linspace(0, frames - 1, min(frames, count)).round().long(), :, :]


def write_strip(path: Path, videos: Tensor, *, width: int = 1200, group: int = 0) -> None:
    """Write videos as one PNG with a row of up to nine frames per video, separated by white lines.

    Images (F = 1) are put side by side. Large frames are scaled down to fit `width`. Small frames
    are enlarged by a whole factor.

    Args:
        path: File to write.
        videos: Videos, [N, 3, F, H, W] in [-1, 1].
        width: Largest width of the PNG in pixels.
        group: Number of videos that belong together: a wider line follows each group, and images
            start a new row. 0 makes one group.
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


def _unit(pixels: np.ndarray) -> Tensor:
    """Convert [F, H, W, 3] uint8 to [F, 3, H, W] float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _tag_bt601(codec) -> None:
    # ffmpeg converts RGB by BT.601. Without tags, players assume BT.709 for large videos and show
    # shifted colours.
    codec.colorspace = 6
    codec.color_primaries = 6
    codec.color_trc = 6
    codec.color_range = 1


def _pixels(x: Tensor, axes: str) -> Tensor:
    """Check axes (e.g. "3FHW") and finite values, and return x as float32 on the CPU."""
    if x.ndim != len(axes) or x.shape[axes.index("3")] != 3 or x.numel() == 0:
        raise ValueError(
            f"shape {list(x.shape)} must be [{', '.join(axes)}], not empty, with 3 RGB channels"
        )
    x = x.detach().float().cpu()
    if not x.isfinite().all():
        raise ValueError(
            f"{int((~x.isfinite()).sum())} of {x.numel()} pixel values are not finite: nothing was"
            " written"
        )
    return x


def _uint8(x: Tensor) -> Tensor:
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
