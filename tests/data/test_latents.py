"""Real clips: what is read of a file, and that a folder is encoded once."""

import os

import pytest
import torch
from PIL import Image

from tdmvid.data.latents import RealConfig, RealLatents
from tdmvid.data.video import media_files, read_clip, read_video, write_image, write_video

RED, GREEN = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, 1, -1])


def brightness(number, frames):
    """[3, F, 32, 32]: grey, a step brighter with every frame; a level of its own for every number."""
    return (torch.arange(frames) * 0.05 + number * 0.1 - 0.8)[None, :, None, None].expand(3, frames, 32, 32)


@pytest.mark.parametrize("rate, fps, expected", [(24, 8, [0, 3, 6, 9]), (8, 8, [0, 1, 2, 3]), (12, 8, [0, 2, 3, 4]), (6, 8, [0, 1, 2, 2])])
@pytest.mark.parametrize("decoder", ["_decode_decord", "_decode_av"])
def test_frames_are_those_of_the_wanted_rate(tmp_path, monkeypatch, decoder, rate, fps, expected):
    if decoder == "_decode_decord":
        pytest.importorskip("decord")
    monkeypatch.setattr(f"tdmvid.data.video.{({'_decode_decord', '_decode_av'} - {decoder}).pop()}", None)
    video = brightness(0, 12)
    write_video(tmp_path / "a.mp4", video, fps=rate, lossless=True)
    found = read_video(tmp_path / "a.mp4", frames=4, fps=fps)
    torch.testing.assert_close(found, video[:, expected], atol=0.02, rtol=0)
    with pytest.raises(ValueError, match=r"a.mp4: has \d+ frames at 8 frames a second, 90 are needed"):
        read_video(tmp_path / "a.mp4", frames=90, fps=8)


@pytest.mark.parametrize("height, width", [(40, 90), (90, 40), (64, 64)])
def test_a_clip_is_the_middle_of_a_file_without_distortion(tmp_path, height, width):
    """A green square in the middle of a red frame stays a square in the middle, whatever the frame's shape."""
    frame = RED[:, None, None].expand(3, height, width).clone()
    frame[:, height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10] = GREEN[:, None, None]
    write_image(tmp_path / "a.png", frame)
    clip = read_clip(tmp_path / "a.png", frames=1, height=32, width=32, fps=8)
    assert clip.shape == (3, 1, 32, 32)
    green = clip[1, 0] > 0
    rows, columns = green.any(1).nonzero(), green.any(0).nonzero()
    side = 20 * 32 / min(height, width)
    for found in (rows, columns):
        assert len(found) == pytest.approx(side, abs=1.5) and (found.min() + found.max()) / 2 == pytest.approx(15.5, abs=1)


def test_an_image_is_no_video_and_a_video_can_give_an_image(tmp_path):
    write_image(tmp_path / "a.png", brightness(1, 1)[:, 0])
    write_video(tmp_path / "b.mp4", brightness(2, 5), fps=8)
    with pytest.raises(ValueError, match="a.png is an image, 9 frames are needed: give videos"):
        read_clip(tmp_path / "a.png", frames=9, height=32, width=32, fps=8)
    torch.testing.assert_close(read_clip(tmp_path / "b.mp4", frames=1, height=32, width=32, fps=8), brightness(2, 1), atol=0.05, rtol=0)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="no-such' is no folder"):
        media_files(tmp_path / "no-such")
    with pytest.raises(ValueError, match="holds no .*.mp4"):
        media_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="a.png: not a readable image"):
        read_clip(tmp_path / "a.png", frames=1, height=32, width=32, fps=8)


def test_colours_with_transparency_or_a_palette_become_rgb(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 255)).save(tmp_path / "a.png")
    torch.testing.assert_close(read_clip(tmp_path / "a.png", frames=1, height=32, width=32, fps=8)[:, 0, 0, 0], RED)


class Encoder:
    """Latents are the mean pixel; counts the clips it was given."""

    def __init__(self):
        self.clips = 0

    def __call__(self, videos):
        self.clips += len(videos)
        return videos.mean((1, 2, 3, 4))[:, None]


@pytest.fixture
def folder(tmp_path):
    """Ten images in two folders, each a level of grey."""
    for number in range(10):
        write_image(tmp_path / "real" / f"{number % 2}" / f"{number}.png", brightness(number, 1)[:, 0])
    return tmp_path / "real"


def clip(path):
    return read_clip(path, frames=1, height=32, width=32, fps=8)


def test_a_folder_is_encoded_once_and_its_changed_files_again(folder, tmp_path):
    config, encoder = RealConfig(path=str(folder), cache=str(tmp_path / "cache")), Encoder()
    RealLatents(config, "vae").encode(clip, encoder, progress=False)
    RealLatents(config, "vae").encode(clip, encoder, progress=False)
    assert encoder.clips == 10
    write_image(folder / "0" / "4.png", brightness(15, 1)[:, 0])
    os.utime(folder / "0" / "4.png", (1, 1))
    changed = RealLatents(config, "vae")
    changed.encode(clip, encoder, progress=False)
    assert encoder.clips == 11
    assert changed(torch.tensor([changed.files.index(folder / "0" / "4.png") / 10 + 0.01])).item() == pytest.approx(0.7, abs=0.01)
    RealLatents(config, "another_vae").encode(clip, encoder, progress=False)
    assert encoder.clips == 21


def test_ranks_encode_a_share_each_and_any_of_them_reads_all(folder, tmp_path):
    config, encoders = RealConfig(path=str(folder), cache=str(tmp_path / "cache")), [Encoder(), Encoder(), Encoder()]
    for share, encoder in enumerate(encoders):
        RealLatents(config, "vae").encode(clip, encoder, share=share, shares=3, progress=False)
    assert [encoder.clips for encoder in encoders] == [4, 3, 3]
    levels = RealLatents(config, "vae")(torch.arange(10) / 10 + 0.05)[:, 0]
    torch.testing.assert_close(levels.sort().values, torch.arange(10) * 0.1 - 0.8, atol=0.01, rtol=0)


def test_uniform_numbers_pick_every_file_alike(folder, tmp_path):
    real = RealLatents(RealConfig(path=str(folder), cache=str(tmp_path / "cache"), limit=4), "vae")
    real.encode(clip, Encoder(), progress=False)
    found = real(torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    assert found[:, 0].unique(return_counts=True)[1].tolist() == pytest.approx([1000] * 4, abs=120)
    assert real(torch.tensor([0.999999])).isfinite().all()  # the last of them, not one behind it
