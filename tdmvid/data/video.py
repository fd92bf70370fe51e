"""Video and image files.

Shapes: F frames, H height, W width, N videos; pixels are RGB in [-1, 1].
"""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .files import atomic_path


def read_video(path: Path, *, frames: int | None = None) -> Tensor:
    """The first `frames` frames of a video (all by default), [3, F, H, W] float32 in [-1, 1].

    Decoded by decord, by PyAV where decord is missing or cannot. Raises FileNotFoundError, or
    ValueError for what is no video and for one of fewer frames.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    if frames is not None and frames < 1:
        raise ValueError(f"frames={frames}: read at least one, or None for all")
    try:
        pixels = _decode_decord(path, frames)
    except Exception:  # not installed, or it cannot (width 48, say); what is wrong, PyAV says better
        pixels = _decode_av(path, frames)
    if frames is not None and len(pixels) < frames:
        raise ValueError(f"{path}: has {len(pixels)} frames, {frames} are needed: use a longer video or fewer frames")
    return torch.from_numpy(pixels).permute(3, 0, 1, 2).float().div_(127.5).sub_(1).contiguous()


def write_video(path: Path, video: Tensor, *, fps: float) -> None:
    """Writes [3, F, H, W] in [-1, 1] as H.264 in an mp4 file that browsers play, atomically.

    H.264 with 4:2:0 colours has even sizes only: an odd side gains a copy of its last row or
    column. Raises ValueError for another shape, values that are not finite, and fps <= 0.
    """
    import av  # loads a second ffmpeg beside decord's; only who needs it

    if fps <= 0:
        raise ValueError(f"fps={fps}: must be positive")
    pixels = _pixels(video, "3FHW")
    height, width = pixels.shape[-2:]
    pixels = functional.pad(pixels, (0, width % 2, 0, height % 2), mode="replicate")
    images = _uint8(pixels).permute(1, 2, 3, 0).numpy()
    with atomic_path(path) as part:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = images.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "12"}
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


def write_strip(path: Path, videos: Tensor, *, scale: int = 1) -> None:
    """Writes [N, 3, F, H, W] in [-1, 1] as one PNG: a row a video, its frames side by side.

    scale: side in pixels of each pixel.
    """
    if scale < 1:
        raise ValueError(f"scale={scale}: must be a whole number of at least 1")
    videos = _pixels(videos, "N3FHW")
    count, _, frames, height, width = videos.shape
    strip = videos.permute(1, 0, 3, 2, 4).reshape(3, count * height, frames * width)
    write_image(path, strip.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2))


def _decode_decord(path: Path, frames: int | None) -> np.ndarray:
    """[F, H, W, 3] uint8, fewer than `frames` where the file has fewer; raises anything."""
    import decord  # has no wheels for some platforms

    reader = decord.VideoReader(str(path), num_threads=1)
    count = len(reader) if frames is None else min(frames, len(reader))
    return reader.get_batch(range(count)).asnumpy()


def _decode_av(path: Path, frames: int | None) -> np.ndarray:
    """[F, H, W, 3] uint8; raises ValueError for what is no video."""
    import av

    try:
        with av.open(str(path)) as container:
            images = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), frames)]
        return np.stack(images)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(f"{path}: not a readable video ({error}): it may be cut short; write it again") from error


def _tag_bt601(codec) -> None:
    # ffmpeg converts RGB by BT.601; untagged, players guess BT.709 for large videos and shift colours.
    codec.colorspace = 6
    codec.color_primaries = 6
    codec.color_trc = 6
    codec.color_range = 1


def _pixels(x: Tensor, axes: str) -> Tensor:
    """x in float32 on the CPU, checked to have the axes, for instance "3FHW", and finite values."""
    if x.ndim != len(axes) or x.shape[axes.index("3")] != 3 or x.numel() == 0:
        raise ValueError(f"shape {list(x.shape)}: must be [{', '.join(axes)}], not empty, with 3 for RGB")
    x = x.detach().float().cpu()
    if not x.isfinite().all():
        raise ValueError(f"{int((~x.isfinite()).sum())} of {x.numel()} pixel values are not finite: nothing to write")
    return x


def _uint8(x: Tensor) -> Tensor:
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
