import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from tdmvid.data import decode as files
from tdmvid.data.media import is_whole
from tdmvid.data.video import read_video, write_image, write_strip, write_video

F, H, W = 17, 48, 64


def smooth_video(frames=F, height=H, width=W):
    """Make a video, [3, F, H, W], of drifting coloured waves over most of [-1, 1]; the mean
    identifies the frame.
    """
    t, y, x = torch.meshgrid(
        *(torch.linspace(0, 1, size) for size in (frames, height, width)), indexing="ij"
    )
    waves = [torch.sin(2 * math.pi * (x + 0.5 * c * y + 0.3 * t) + c) for c in range(3)]
    return 0.6 * torch.stack(waves) + 0.6 * (t - 0.5)


def psnr(a, b):
    return 10 * torch.log10(4 / (a - b).square().mean()).item()


def image_file(path):
    """Make an image, [3, H, W] uint8."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


@pytest.fixture(params=["decord", "av"])
def decoder(request, monkeypatch):
    """Leave read_video only one of its decoders."""
    if request.param == "decord":
        pytest.importorskip("decord")
        monkeypatch.setattr(files, "_decode_av", None)
    else:
        monkeypatch.setattr(files, "_decode_decord", None)


def test_a_smooth_video_survives_the_file(tmp_path, decoder):
    video = smooth_video()
    write_video(tmp_path / "a.mp4", video, fps=8)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == video.shape and back.dtype == torch.float32
    assert min(psnr(back[:, f], video[:, f]) for f in range(F)) > 34


def test_a_folder_with_a_colon_is_not_taken_for_a_protocol(tmp_path, monkeypatch, decoder):
    monkeypatch.chdir(tmp_path)
    path = Path("night:v2") / "a.mp4"
    path.parent.mkdir()
    write_video(path, smooth_video(), fps=8)
    assert read_video(path).shape == smooth_video().shape
    assert is_whole(path, frames=F, height=smooth_video().shape[-2], width=smooth_video().shape[-1])


@pytest.mark.parametrize("colour", [(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, 1), (-1, -1, -1)])
def test_colours_survive_the_file(tmp_path, decoder, colour):
    video = torch.tensor(colour).float()[:, None, None, None].expand(3, 2, 48, 64)
    write_video(tmp_path / "a.mp4", video, fps=8)
    assert (
        read_video(tmp_path / "a.mp4") - video
    ).abs().max() < 4 / 127.5  # the matrix of BT.709 is 20 off


@pytest.mark.parametrize(
    "frames, height, width", [(1, 48, 64), (5, 33, 47), (49, 32, 32), (2, 720, 1280)]
)
def test_every_frame_is_kept_and_odd_sides_repeat_their_edge(
    tmp_path, monkeypatch, frames, height, width
):
    video = smooth_video(frames, height, width)
    write_video(tmp_path / "a.mp4", video, fps=23.976)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == (3, frames, height + height % 2, width + width % 2)
    assert psnr(back[..., :height, :width], video) > 30
    monkeypatch.setattr(files, "_decode_decord", None)
    assert torch.equal(read_video(tmp_path / "a.mp4"), back)


def test_the_first_frames_are_the_same_as_those_of_the_whole(tmp_path, decoder):
    write_video(tmp_path / "a.mp4", smooth_video(), fps=16)
    assert torch.equal(
        read_video(tmp_path / "a.mp4", frames=5), read_video(tmp_path / "a.mp4")[:, :5]
    )
    with refused("a.mp4", "17", "18"):
        read_video(tmp_path / "a.mp4", frames=18)


def test_the_file_says_what_a_browser_needs(tmp_path):
    av = pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", smooth_video(), fps=8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate, stream.frames) == (
            "h264",
            "yuv420p",
            8,
            F,
        )
        assert (codec.colorspace, codec.color_range) == (6, 1)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "a browser would load all before it plays"


def test_what_is_no_video_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_video(), fps=8)
    data = (tmp_path / "a.mp4").read_bytes()
    for content in (b"", b"text", data[:200]):
        (tmp_path / "cut.mp4").write_bytes(content)
        with refused("cut.mp4"):
            read_video(tmp_path / "cut.mp4")
    with refused("b.mp4", error=FileNotFoundError):
        read_video(tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "video, fps, fact",
    [
        (torch.full((3, 2, 8, 8), torch.nan), 8, "384"),
        (torch.zeros(2, 3, 8, 8), 8, "[2, 3, 8, 8]"),
        (torch.zeros(3, 2, 8, 8), 0, "fps=0"),
    ],
)
def test_a_video_that_cannot_be_written_leaves_the_old_file(tmp_path, video, fps, fact):
    (tmp_path / "a.mp4").write_bytes(b"old")
    with refused(fact):
        write_video(tmp_path / "a.mp4", video, fps=fps)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_an_image_is_kept_to_half_a_level_and_clamped(tmp_path):
    image = 2 * torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) - 1
    image[0, 0, 0], image[1, 0, 0] = -3, 3
    write_image(tmp_path / "a.png", image)
    back = image_file(tmp_path / "a.png")
    assert (back / 127.5 - 1 - image.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6
    assert back[:, 0, 0].tolist()[:2] == [0, 255]


def test_a_strip_has_a_row_a_video_and_its_frames_side_by_side_between_white_lines(tmp_path):
    levels = torch.tensor([[-1.0, 0.0, -1.0], [0.0, -1.0, 0.0]])  # two videos of three frames
    write_strip(tmp_path / "a.png", levels[:, None, :, None, None].expand(2, 3, 3, 4, 5), width=40)
    expected = torch.full((9, 17), 255, dtype=torch.uint8)
    for row in range(2):
        for frame in range(3):
            expected[5 * row : 5 * row + 4, 6 * frame : 6 * frame + 5] = 128 * (
                row + frame == 1 or row + frame == 3
            )
    expected = expected.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    assert torch.equal(image_file(tmp_path / "a.png"), expected.expand(3, 18, 34))


def test_rows_of_a_strip_that_belong_together_stand_apart_from_the_next(tmp_path):
    write_strip(tmp_path / "a.png", -torch.ones(4, 3, 2, 2, 2), width=5, group=2)
    dark = (image_file(tmp_path / "a.png")[0] == 0).any(1)
    assert dark.tolist() == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_strip_of_a_long_large_video_is_a_picture_that_can_be_looked_at(tmp_path):
    """Nine frames, including first and last, not wider than requested, in their aspect ratio."""
    levels = torch.linspace(-1, 1, 49)
    write_strip(
        tmp_path / "a.png", levels[None, None, :, None, None].expand(2, 3, 49, 48, 72), width=300
    )
    picture = image_file(tmp_path / "a.png")
    assert picture.shape == (3, 2 * 21 + 1, 9 * 32 + 8)
    shown = picture[0, 10, 16::33].float() / 127.5 - 1
    torch.testing.assert_close(shown, levels[::6], atol=0.01, rtol=0)


def test_images_stand_side_by_side_in_rows_of_those_that_belong_together(tmp_path):
    images = torch.linspace(-1, 1, 6)[:, None, None, None, None].expand(6, 3, 1, 4, 4)
    write_strip(tmp_path / "a.png", images, width=14, group=3)
    assert image_file(tmp_path / "a.png")[0, ::5, ::5].tolist() == [[0, 51, 102], [153, 204, 255]]
    write_strip(tmp_path / "a.png", images, width=29)
    assert image_file(tmp_path / "a.png").shape == (3, 4, 29)
