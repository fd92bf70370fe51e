"""Decode the frames of a video file, with equal results from two decoders.

Frames are returned in the order and at the times at which a player shows them (edit lists are
applied): upright, with square pixels, deinterlaced, with 8 bits per channel, and transparent parts
on white. decord reads files that need no conversion. PyAV reads all other files, and those that
decord cannot read.

Shapes: F is the number of frames, H the height and W the width in pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import av

Item = TypeVar("Item")

FORMATS = (
    "3gp,asf,avi,dv,flv,gif,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,ogg,vob,webm,wtv,"
    "apng,webp_pipe"
)
"""Allowed container formats.

If ffmpeg detected the format, it would accept a playlist as a video and open the files in it.
"""
TRC_PQ, TRC_HLG = 16, 18
"""Transfer characteristics of HDR video (ITU-T H.273)."""
SLACK = 1e-3
"""Tolerance of times in seconds; containers round times to a millisecond."""
WIDEST_PIXEL = 8
"""Largest ratio of pixel width to height, or the reverse. A larger ratio is a broken header."""


def decode(path: Path, frames: int | None, fps: float | None) -> np.ndarray:
    """Decode the beginning of a video.

    Args:
        path: Video file.
        frames: Number of frames; None decodes all.
        fps: Frames per second to sample at; None uses every frame.

    Returns:
        Pixels, [F, H, W, 3] uint8.

    Raises:
        ValueError: If the file is not a video, or is too short or too slow.
    """
    try:
        pixels, numbers = _decode_decord(path, frames, fps)
    except Exception:  # not installed, not plain, or broken; PyAV has better messages
        pixels, numbers = _decode_av(path, frames, fps)
    rate = f" at {fps:g} frames per second" if fps else ""
    if frames is not None and len(numbers) < frames:
        raise ValueError(
            f"{path} has {len(numbers)} frames{rate}, but {frames} are needed: use a longer video"
            " or fewer frames"
        )
    if fps and frames and len(set(numbers)) < 0.9 * frames:
        raise ValueError(
            f"{path} has {len(set(numbers))} different frames, but {frames} are needed{rate}: use a"
            " video with a higher frame rate, or a lower rate"
        )
    return pixels


def _decode_decord(
    path: Path, frames: int | None, fps: float | None
) -> tuple[np.ndarray, list[int]]:
    """Decode a plain file with decord; return pixels and frame numbers. May raise any error."""
    import decord  # has no wheels for some platforms

    if not _is_plain(path):
        raise ValueError(f"{path} must be read by PyAV")
    reader = decord.VideoReader(str(path.absolute()), num_threads=1)
    times = reader.get_frame_timestamp(range(len(reader)))[:, 0].tolist()
    numbers = [number for number, _ in _picked(((time, None) for time in times), frames, fps)]
    return reader.get_batch(numbers).asnumpy(), numbers


def _decode_av(path: Path, frames: int | None, fps: float | None) -> tuple[np.ndarray, list[int]]:
    """Decode any file with PyAV; return pixels and frame numbers."""
    import av

    images: list[np.ndarray] = []
    numbers: list[int] = []
    try:
        with _open(path) as container:
            stream = _track(container)
            look: _Look | None = None
            for number, frame in _picked(_shown(container, stream), frames, fps):
                look = look or _Look.of(frame, stream)
                again = numbers and numbers[-1] == number
                images.append(images[-1] if again else look.picture(frame))
                numbers.append(number)
        return np.stack(images), numbers
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable video ({error}): it may be truncated; write it again as"
            " H.264"
        ) from error


def _is_plain(path: Path) -> bool:
    """Whether decord's frames need no conversion.

    This holds for progressive 8-bit H.264 that starts at time 0, without rotation, pixel aspect
    ratio or frames to leave out.
    """
    with _open(path) as container:
        stream = _track(container)
        codec = stream.codec_context
        if (
            codec.name != "h264"
            or codec.pix_fmt not in ("yuv420p", "yuv444p")
            or len(container.streams.video) > 1
            or stream.sample_aspect_ratio not in (None, 0, 1)
            or stream.start_time != 0
            or any(
                packet.is_discard or packet.is_corrupt or packet.pts is None
                for packet in container.demux(stream)
                if packet.size
            )
        ):
            return False
        container.seek(0)
        frame = next(container.decode(stream))
        return not (
            frame.interlaced_frame
            or _matrix(frame)
            or frame.color_trc in (TRC_PQ, TRC_HLG)
            or (frame.width, frame.height) != (codec.width, codec.height)
        )


def _open(path: Path) -> av.container.InputContainer:
    import av  # loads a second ffmpeg in addition to decord's, so import it only when needed

    return av.open(str(path.absolute()), options={"format_whitelist": FORMATS})


def _track(container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream that a player shows, not a cover image or another camera."""
    stream: Any = container.streams.best("video")
    if stream is None:
        raise ValueError("it has no video frames")
    if stream.codec_context is None:
        raise ValueError("its codec has no decoder here")
    stream.thread_type = "AUTO"
    return stream


def _shown(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield every frame with its time in seconds; missing times follow the rate of the file."""
    frames = _decoded(container, stream)
    first = next(frames, None)
    if first is None:
        raise ValueError("it has no video frames")
    frames = chain([first], frames)
    if first.interlaced_frame:
        frames = _deinterlaced(frames, stream)
    step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
    time: float | None = None
    for frame in frames:
        if frame.pts is not None and frame.time_base is not None:
            stamp = float(frame.pts * frame.time_base)
            time = stamp if time is None else max(time, stamp)
        else:
            time = 0.0 if time is None else time + step
        yield time, frame


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Yield the frames in display order."""
    import av

    alpha = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if alpha and stream.metadata.get("alpha_mode") == "1":  # ffmpeg's own decoders drop alpha
        codec: Any = av.CodecContext.create(alpha, "r")
        for packet in container.demux(stream):
            yield from codec.decode(packet)
    else:
        yield from container.decode(stream)


def _deinterlaced(
    frames: Iterable[av.VideoFrame], stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """Deinterlace frames, and yield the same number of frames."""
    import av

    graph = av.filter.Graph()
    source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
    comb = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    source.link_to(comb)
    comb.link_to(sink)
    graph.configure()
    for frame in chain(frames, [None]):
        graph.vpush(frame)
        while True:
            try:
                yield graph.vpull()
            except (BlockingIOError, EOFError):
                break


def _picked(
    shown: Iterable[tuple[float, Item]], frames: int | None, fps: float | None
) -> Iterator[tuple[int, Item]]:
    """Yield the first frames with their numbers; with `fps`, the frames shown at that rate."""
    if fps:
        assert frames is not None, "a rate needs a number of frames"
        return _on_screen(shown, frames, fps)
    return enumerate(item for _, item in islice(shown, frames))


def _on_screen(
    shown: Iterable[tuple[float, Item]], frames: int, fps: float
) -> Iterator[tuple[int, Item]]:
    """Yield the frame that is shown every 1 / fps seconds, up to `frames` times."""
    taken, start, before, gap = 0, 0.0, 0.0, 0.0
    last: tuple[int, Item] | None = None
    for number, (time, item) in enumerate(shown):
        if last is None:
            start = time
        else:
            while taken < frames and taken / fps + SLACK < time - start:
                yield last
                taken += 1
            gap = time - before
        if taken == frames:
            return
        before, last = time, (number, item)
    end = before - start + gap
    while last and taken < frames and (taken == 0 or taken / fps < end - SLACK):
        yield last
        taken += 1


def _matrix(frame: av.VideoFrame) -> tuple[int, ...]:
    """Return the display matrix (xx, xy, yx, yy) of a frame, or () for the identity."""
    side_data: Any = frame.side_data
    for data in side_data:
        if data.type.name == "DISPLAYMATRIX":
            values = struct.unpack("<9i", bytes(data)[:36])
            turn = values[0], values[1], values[3], values[4]
            return () if turn == (1 << 16, 0, 0, 1 << 16) else turn
    return ()


@dataclass(frozen=True)
class _Look:
    """Display size and orientation of the first frame, which all later frames are converted to."""

    width: int
    height: int
    matrix: tuple[int, ...]

    @classmethod
    def of(cls, frame: av.VideoFrame, stream: av.VideoStream) -> _Look:
        ratio = float(stream.sample_aspect_ratio or 1)
        if not 1 / WIDEST_PIXEL <= ratio <= WIDEST_PIXEL:
            ratio = 1.0
        return cls(max(1, round(frame.width * ratio)), frame.height, _matrix(frame))

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to [H, W, 3] uint8, as a player shows it."""
        size: dict[str, Any] = {"width": self.width, "height": self.height}
        kind = frame.format
        if kind.has_palette or any(part.is_alpha for part in kind.components):
            pixels = frame.reformat(**size, format="rgba").to_ndarray().astype(np.uint16)
            colour, alpha = pixels[..., :3], pixels[..., 3:]
            blended = (colour * alpha + 255 * (255 - alpha) + 127) // 255
            return self._upright(blended.astype(np.uint8))
        return self._upright(frame.reformat(**size, format="rgb24").to_ndarray())

    def _upright(self, pixels: Any) -> np.ndarray:
        """Rotate in steps of 90 degrees and mirror, as close to the display matrix as possible."""
        if not self.matrix:
            return pixels
        xx, xy, yx, yy = self.matrix
        if abs(xy) + abs(yx) > abs(xx) + abs(yy):
            pixels, right, down = pixels.swapaxes(0, 1), yx, xy
        else:
            right, down = xx, yy
        return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]
