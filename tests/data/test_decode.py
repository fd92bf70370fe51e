"""Both decoders give the same frames for files as cameras and editors write them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from refusals import refused

from tdmvid.data import decode as decoding
from tdmvid.data.media_folders import IMAGES, VIDEOS, media_files
from tdmvid.data.video import read_clip, read_video

av = pytest.importorskip("av")

COUNT, HEIGHT, WIDTH = 12, 64, 96
LOSSY = {"libx264": {"crf": "1"}, "libx265": {"x265-params": "log-level=0:crf=1"}}


def scene(height=HEIGHT, width=WIDTH):
    """Make frames, [F, H, W, 3] uint8: the red level is the number; the upper left is green."""
    x = np.arange(width)
    frames = np.zeros((COUNT, height, width, 3), dtype=np.uint8)
    frames[..., 0] = 40 + 15 * np.arange(COUNT)[:, None, None]
    frames[..., 2] = x * 200 // width
    frames[:, : height // 4, : width // 4] = (0, 200, 0)
    return frames


def write(
    path,
    frames=None,
    *,
    codec="libx264",
    layout="yuv420p",
    rate=8,
    times=None,
    turn=0,
    ratio=None,
    options=None,
    kind="rgb24",
    **context,
):
    """Write frames like a camera; times: time of each frame in milliseconds."""
    frames = scene() if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = layout
        stream.options = LOSSY.get(codec, {}) | (options or {})
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if ratio:
            stream.codec_context.sample_aspect_ratio = Fraction(*ratio)
        if turn:
            stream.set_display_rotation(turn)
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=kind)
            if "colorspace" in context:
                frame = frame.reformat(format=layout, dst_colorspace=context["colorspace"])
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def remux(source, path, change):
    """Copy the packets of a file with changes; packets for which `change` returns False are
    removed.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size and change(packet) is not False:
                packet.stream = stream
                new.mux(packet)


def both(path, monkeypatch, **wanted):
    """Read a file with both decoders and with PyAV alone, and check that the results are equal."""
    pixels = read_video(path, **wanted)
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decode_decord", None)
        assert torch.equal(read_video(path, **wanted), pixels)
    return pixels


def levels(pixels):
    """Return the number of each frame [3, F, H, W] of a scene, from the red level in the center."""
    red = pixels[0, :, pixels.shape[2] // 2, pixels.shape[3] // 2]
    return (((red + 1) * 127.5 - 40) / 15).round().int().tolist()


KINDS = {
    "h264.mp4": {},
    "small.m4v": {"frames": scene(32, 48)},
    "bt709.mp4": {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1},
    "full.mp4": {"layout": "yuvj420p", "color_range": 2},
    "444.mp4": {"layout": "yuv444p"},
    "ten.mkv": {"layout": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265"},
    "hevc10.mov": {"codec": "libx265", "layout": "yuv420p10le"},
    "av1.mp4": {"codec": "libsvtav1", "layout": "yuv420p10le", "options": {"crf": "5"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"crf": "5", "b": "0"}},
    "prores.mov": {"codec": "prores_ks", "layout": "yuv422p10le"},
    "editor.mov": {"codec": "prores_ks", "layout": "yuva444p10le", "options": {"profile": "4"}},
    "old.avi": {"codec": "mpeg4", "options": {"b": "4M"}},
    "b_frames.avi": {"options": {"bf": "2"}},
    "camera.avi": {"codec": "mjpeg", "layout": "yuvj420p", "options": {"q": "2"}},
    "disc.mpg": {"codec": "mpeg2video", "rate": 24, "options": {"b": "8M"}},
    "camcorder.mts": {},
    "grey.mkv": {"codec": "ffv1", "layout": "gray"},
    "late.mkv": {"times": [5000 + 125 * n for n in range(COUNT)]},
    "flash.flv": {"codec": "flv1" if "flv1" in av.codecs_available else "flv"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_read_in_its_order_by_either_decoder(tmp_path, monkeypatch, name):
    if KINDS[name].get("codec", "libx264") not in av.codecs_available:
        pytest.skip("this build of ffmpeg does not write it")
    write(tmp_path / name, **KINDS[name])
    pixels = both(tmp_path / name, monkeypatch)
    if name != "grey.mkv":
        assert levels(pixels) == list(range(COUNT))
    else:
        assert (pixels[0] == pixels[1]).all() and pixels.shape[1] == COUNT
    assert media_files(tmp_path, VIDEOS) == [tmp_path / name]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "b.mp4"])
@pytest.mark.parametrize("turn, corner", [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_a_phone_that_was_turned_shows_the_scene_upright(tmp_path, monkeypatch, name, turn, corner):
    """The upper left corner is moved to where the display matrix puts it."""
    codec = "libx265" if name == "b.mp4" else "libx264"
    write(tmp_path / name, turn=turn, codec=codec)
    pixels = both(tmp_path / name, monkeypatch)
    assert pixels.shape[2:] == ((HEIGHT, WIDTH) if turn == 180 else (WIDTH, HEIGHT))
    green = pixels[1, 0]
    assert green[corner] > 0.4 and (green > 0).float().mean() == pytest.approx(1 / 16, abs=0.01)
    assert levels(pixels) == list(range(COUNT))


@pytest.mark.parametrize(
    "matrix, corner",
    [
        ((-1, 0, 0, 1), (0, -1)),  # mirrored by a front camera
        ((1, 0, 0, -1), (-1, 0)),
        ((0, 1, 1, 0), (0, 0)),
        ((0, -1, -1, 0), (-1, -1)),
    ],
)
def test_a_mirrored_video_is_mirrored_back(matrix, corner):
    look = decoding._Look(WIDTH, HEIGHT, matrix)
    frame = av.VideoFrame.from_ndarray(scene()[0], format="rgb24")
    assert look.picture(frame)[corner].tolist() == [0, 200, 0]


@pytest.mark.parametrize("ratio, width", [((4, 3), 128), ((1, 2), 48), ((1, 1000), WIDTH)])
def test_pixels_that_are_not_square_become_square(tmp_path, monkeypatch, ratio, width):
    write(tmp_path / "a.mp4", ratio=ratio)
    assert both(tmp_path / "a.mp4", monkeypatch).shape == (3, COUNT, HEIGHT, width)


def test_a_variable_rate_is_read_by_its_times(tmp_path, monkeypatch):
    """Six frames of 200 ms and six of 40 ms, sampled every 200 ms."""
    times = [200 * n for n in range(6)] + [1200 + 40 * n for n in range(6)]
    write(tmp_path / "a.mkv", times=times)
    found = levels(both(tmp_path / "a.mkv", monkeypatch, frames=8, fps=5))
    assert found == [0, 1, 2, 3, 4, 5, 6, 11]


def test_what_an_editor_cut_off_is_not_shown(tmp_path, monkeypatch):
    """A cut without encoding keeps the frames from the last key frame on, with an edit list."""
    write(tmp_path / "whole.mp4", options={"bf": "0"})

    def earlier(packet):
        half = int(0.5 / packet.time_base)
        packet.pts, packet.dts = packet.pts - half, packet.dts - half

    remux(tmp_path / "whole.mp4", tmp_path / "cut.mp4", earlier)
    pixels = both(tmp_path / "cut.mp4", monkeypatch)
    assert levels(pixels) == list(range(4, COUNT))
    assert levels(both(tmp_path / "cut.mp4", monkeypatch, frames=3, fps=4)) == [4, 6, 8]


@pytest.mark.parametrize("layout, alpha", [("rgba", 0), ("rgba", 255), ("bgra", 102)])
def test_transparent_parts_are_white_as_in_images(tmp_path, monkeypatch, layout, alpha):
    frames = np.full((2, 32, 32, 4), (10, 20, 30, alpha), dtype=np.uint8)
    write(tmp_path / "a.mov", frames, codec="png", layout="rgba", kind="rgba")
    found = both(tmp_path / "a.mov", monkeypatch)[:, 0, 0, 0]
    shown = torch.tensor([10.0, 20, 30]) * alpha / 255 + 255 - alpha
    torch.testing.assert_close((found + 1) * 127.5, shown, atol=0.6, rtol=0)


def test_the_transparency_of_a_web_video_is_read(tmp_path, monkeypatch):
    frames = np.full((3, 64, 64, 4), (200, 0, 0, 255), dtype=np.uint8)
    frames[:, :, 32:, 3] = 0
    write(
        tmp_path / "a.webm", frames, codec="libvpx-vp9", layout="yuva420p", kind="rgba",
        options={"crf": "5", "auto-alt-ref": "0"},
    )  # fmt: skip
    pixels = both(tmp_path / "a.webm", monkeypatch)
    assert pixels.shape[1] == 3
    assert (pixels[:, 1, 32, 56] > 0.97).all() and pixels[2, 1, 32, 8] < -0.9


def test_fields_are_not_left_as_a_comb(tmp_path, monkeypatch):
    """The fields are from two moments: a bar moves by a quarter between even and odd lines."""
    frames = np.zeros((8, 64, 128, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        for field in (0, 1):
            place = 8 * (2 * number + field)
            frame[field::2, place % 96 : place % 96 + 16] = 255
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1", "crf": "1"}
    write(tmp_path / "a.mp4", frames, options=options, rate=25)
    pixels = both(tmp_path / "a.mp4", monkeypatch)
    assert pixels.shape == (3, 8, 64, 128)
    lines = pixels[0, 3, 8:-8]
    raw = torch.from_numpy(frames[3, 8:-8, :, 0]).float() / 127.5 - 1
    comb, was = (((x[1:] - x[:-1]).abs().mean()) for x in (lines, raw))
    assert comb < 0.25 * was


def test_a_size_that_changes_on_the_way_is_that_of_the_first_frame(tmp_path, monkeypatch):
    """This happens in recordings of a window or of a call."""
    write(tmp_path / "a.ts", scene())
    write(tmp_path / "b.ts", scene(128, 192))
    joined = (tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes()
    (tmp_path / "c.ts").write_bytes(joined)
    pixels = both(tmp_path / "c.ts", monkeypatch)
    assert pixels.shape[2:] == (HEIGHT, WIDTH) and pixels.shape[1] > COUNT


def test_frames_without_times_follow_at_the_rate_of_the_file():
    frames = [av.VideoFrame(16, 16, "rgb24") for _ in range(4)]
    frames[2].pts, frames[2].time_base = 1, Fraction(1)

    class Stream:
        average_rate, guessed_rate = Fraction(10), None

    class Decoder:
        @staticmethod
        def decode(stream):
            return iter(frames)

    Stream.codec_context = type("Codec", (), {"name": "h264"})
    times = [time for time, _ in decoding._shown(Decoder(), Stream())]
    assert times == pytest.approx([0, 0.1, 1, 1.1])


def test_a_playlist_is_no_video(tmp_path):
    write(tmp_path / "a.ts")
    (tmp_path / "b.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n")
    with refused("b.mp4"):
        read_video(tmp_path / "b.mp4")


def test_an_animation_is_a_video(tmp_path, monkeypatch):
    write(tmp_path / "a.gif", codec="gif", layout="rgb8")
    pixels = both(tmp_path / "a.gif", monkeypatch)
    assert pixels.shape[:2] == (3, COUNT)
    clip = read_clip(tmp_path / "a.gif", frames=5, height=32, width=32, fps=4)
    assert clip.shape == (3, 5, 32, 32)
    assert not VIDEOS & IMAGES


def test_a_codec_without_a_decoder_is_named_with_the_file(tmp_path):
    path = tmp_path / "a.webm"
    write(path, codec="libvpx")
    data = path.read_bytes()
    assert data.count(b"V_VP8") == 1
    path.write_bytes(data.replace(b"V_VP8", b"V_XYZ"))
    with refused(path, "codec", "H.264"):
        read_video(path)
