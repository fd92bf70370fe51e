"""Real clips: reading files, and encoding a folder once."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused, states

from tdmvid.config import RealConfig
from tdmvid.data.decode import _on_screen
from tdmvid.data.latents import RealLatents, note_unread, real_files
from tdmvid.data.media_folders import VIDEOS, media_files
from tdmvid.data.video import read_clip, read_video, write_image, write_video

RED, GREEN = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, 1, -1])


def brightness(number, frames):
    """Make a grey clip, [3, F, 32, 32], that gets brighter with every frame; the base level depends
    on the number.
    """
    return (torch.arange(frames) * 0.05 + number * 0.1 - 0.8)[None, :, None, None].expand(
        3, frames, 32, 32
    )


@pytest.mark.parametrize(
    "rate, fps, expected",
    [(24, 8, [0, 3, 6, 9]), (8, 8, [0, 1, 2, 3]), (12, 8, [0, 1, 3, 4]), (23.976, 8, [0, 3, 6, 9])],
)
@pytest.mark.parametrize("decoder", ["_decode_decord", "_decode_av"])
def test_frames_are_those_of_the_wanted_rate(tmp_path, monkeypatch, decoder, rate, fps, expected):
    if decoder == "_decode_decord":
        pytest.importorskip("decord")
    monkeypatch.setattr(
        f"tdmvid.data.decode.{({'_decode_decord', '_decode_av'} - {decoder}).pop()}", None
    )
    video = brightness(0, 12)
    write_video(tmp_path / "a.mp4", video, fps=rate, lossless=True)
    found = read_video(tmp_path / "a.mp4", frames=4, fps=fps)
    torch.testing.assert_close(found, video[:, expected], atol=0.02, rtol=0)
    with refused("a.mp4", "90", "8"):
        read_video(tmp_path / "a.mp4", frames=90, fps=8)
    with refused("a.mp4", "4", "100"):
        read_video(tmp_path / "a.mp4", frames=4, fps=100)


def test_frames_of_uneven_length_are_taken_by_their_time():
    """Twenty frames of 100 ms and forty of 17 ms, sampled every quarter of a second."""
    times = [0.1 * n for n in range(20)] + [2 + 0.017 * n for n in range(40)]
    shown = [(time, f"frame {n}") for n, time in enumerate(times)]
    taken = [0, 2, 5, 7, 10, 12, 15, 17, 20]
    assert list(_on_screen(shown, 9, 4)) == [(n, f"frame {n}") for n in taken]
    assert len(list(_on_screen(shown, 20, 4))) == 11  # the video lasts 2.68 seconds


@pytest.mark.parametrize("height, width", [(40, 90), (90, 40), (64, 64)])
def test_a_clip_is_the_middle_of_a_file_without_distortion(tmp_path, height, width):
    """A green square in the center of a red frame stays a centered square, for any shape of the
    frame.
    """
    frame = RED[:, None, None].expand(3, height, width).clone()
    frame[:, height // 2 - 10 : height // 2 + 10, width // 2 - 10 : width // 2 + 10] = GREEN[
        :, None, None
    ]
    write_image(tmp_path / "a.png", frame)
    clip = read_clip(tmp_path / "a.png", frames=1, height=32, width=32, fps=8)
    assert clip.shape == (3, 1, 32, 32)
    green = clip[1, 0] > 0
    rows, columns = green.any(1).nonzero(), green.any(0).nonzero()
    side = 20 * 32 / min(height, width)
    for found in (rows, columns):
        assert len(found) == pytest.approx(side, abs=1.5) and (
            found.min() + found.max()
        ) / 2 == pytest.approx(15.5, abs=1)


def test_an_image_is_no_video_and_a_video_can_give_an_image(tmp_path):
    write_image(tmp_path / "a.png", brightness(1, 1)[:, 0])
    write_video(tmp_path / "b.mp4", brightness(2, 5), fps=8)
    with refused("a.png", "9"):
        read_clip(tmp_path / "a.png", frames=9, height=32, width=32, fps=8)
    torch.testing.assert_close(
        read_clip(tmp_path / "b.mp4", frames=1, height=32, width=32, fps=8),
        brightness(2, 1),
        atol=0.05,
        rtol=0,
    )


def test_what_cannot_be_read_is_named(tmp_path):
    with refused("no-such"):
        media_files(tmp_path / "no-such", VIDEOS)
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "._a.mp4").write_bytes(b"of another system")
    with refused(tmp_path, "no video"):
        media_files(tmp_path, VIDEOS)
    (tmp_path / "a.png").write_bytes(b"no image")
    with refused("a.png"):
        read_clip(tmp_path / "a.png", frames=1, height=32, width=32, fps=8)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), torch.ones(3)),
        ("L", 255, torch.ones(3)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (32, 32), colour).save(tmp_path / "a.png")
    torch.testing.assert_close(clip(tmp_path / "a.png")[:, 0, 0, 0], expected)


def test_a_photograph_stands_upright(tmp_path):
    picture = Image.new("RGB", (64, 32), (255, 0, 0))
    picture.paste(
        (0, 255, 0), (32, 0, 64, 32)
    )  # green on the right, and below after a rotation by 90 degrees
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=turned)
    found = read_clip(tmp_path / "a.png", frames=1, height=64, width=32, fps=8)[:, 0]
    torch.testing.assert_close(
        torch.stack([found[:, 8, 16], found[:, 56, 16]]), torch.stack([RED, GREEN])
    )


def test_an_image_of_more_than_8_bits_is_refused(tmp_path):
    Image.fromarray(np.full((32, 32), 30000, dtype=np.uint16)).save(tmp_path / "a.png")
    with refused("a.png", "I;16"):
        clip(tmp_path / "a.png")


class Encoder:
    """Return the mean pixel as latents, and count the clips."""

    def __init__(self):
        self.clips = 0

    def __call__(self, videos):
        self.clips += len(videos)
        return videos.mean((1, 2, 3, 4))[:, None]


@pytest.fixture
def folder(tmp_path):
    """Ten images in two folders, each with its own grey level."""
    for number in range(10):
        write_image(
            tmp_path / "real" / f"{number % 2}" / f"{number}.png", brightness(number, 1)[:, 0]
        )
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
    assert changed(
        torch.tensor([changed.files.index(folder / "0" / "4.png") / 10 + 0.01])
    ).item() == pytest.approx(0.7, abs=0.01)
    RealLatents(config, "another_vae").encode(clip, encoder, progress=False)
    assert encoder.clips == 21


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_encoded(folder, tmp_path):
    (tmp_path / "notes.txt").touch()
    real = RealLatents(RealConfig(path=str(folder), cache=str(tmp_path / "notes.txt")), "vae")
    encoder = Encoder()
    with refused("notes.txt/vae", "real.cache"):
        real.encode(clip, encoder, progress=False)
    assert encoder.clips == 0


def test_files_that_cannot_be_read_are_all_named_and_the_others_are_encoded(folder, tmp_path):
    for name in ("3", "5"):
        (folder / "1" / f"{name}.png").write_bytes(b"cut short")
    real, encoder = (
        RealLatents(RealConfig(path=str(folder), cache=str(tmp_path / "cache")), "vae"),
        Encoder(),
    )
    failed = real.encode(clip, encoder, progress=False)
    assert (
        sorted(path.name for path in failed) == ["3.png", "5.png"]
        and encoder.clips == 8
        and real.missing() == 2
    )


def test_latents_that_are_not_finite_or_were_damaged_are_named(folder, tmp_path):
    config = RealConfig(path=str(folder), cache=str(tmp_path / "cache"))
    real = RealLatents(config, "vae")
    failed = real.encode(clip, lambda videos: torch.full((1, 4), torch.nan), progress=False)
    assert len(failed) == 10 and real.missing() == 10
    real.encode(clip, Encoder(), progress=False)
    (shard,) = (tmp_path / "cache" / "vae").iterdir()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with refused(shard):
        RealLatents(config, "vae")(torch.arange(10) / 10 + 0.05)


def test_another_folder_with_the_same_names_is_encoded_for_itself(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other", copy_function=shutil.copy2)
    config = RealConfig(path=str(folder), cache=str(tmp_path / "cache"))
    one, other = (
        RealLatents(config, "vae"),
        RealLatents(replace(config, path=str(tmp_path / "other")), "vae"),
    )
    one.encode(clip, Encoder(), progress=False)
    assert (one.missing(), other.missing()) == (0, 10) and one.known == other.known


def test_videos_alone_are_taken_where_clips_have_frames(folder, tmp_path):
    write_video(folder / "a.mp4", brightness(2, 5), fps=8)
    assert [
        path.name for path in RealLatents(RealConfig(path=str(folder)), "vae", frames=5).files
    ] == ["a.mp4"]


def test_ranks_encode_a_share_each_and_any_of_them_reads_all(folder, tmp_path):
    config, encoders = (
        RealConfig(path=str(folder), cache=str(tmp_path / "cache")),
        [
            Encoder(),
            Encoder(),
            Encoder(),
        ],
    )
    meetings = []
    for share, encoder in enumerate(encoders):

        def meet(share=share):
            return meetings.append(share)

        RealLatents(config, "vae").encode(
            clip, encoder, share=share, shares=3, meet=meet, progress=False
        )
    assert meetings == [0, 1, 2]
    assert [encoder.clips for encoder in encoders] == [4, 3, 3]
    levels = RealLatents(config, "vae")(torch.arange(10) / 10 + 0.05)[:, 0]
    torch.testing.assert_close(
        levels.sort().values, torch.arange(10) * 0.1 - 0.8, atol=0.01, rtol=0
    )


def test_uniform_numbers_pick_every_file_alike(folder, tmp_path):
    real = RealLatents(RealConfig(path=str(folder), cache=str(tmp_path / "cache"), limit=4), "vae")
    real.encode(clip, Encoder(), progress=False)
    found = real(torch.rand(4000, generator=torch.Generator().manual_seed(0)))
    assert found[:, 0].unique(return_counts=True)[1].tolist() == pytest.approx([1000] * 4, abs=120)
    assert real(torch.tensor([0.999999])).isfinite().all()  # the last clip, not one past the end


def test_files_that_are_not_read_are_counted_and_named(folder):
    for name in ("0/4.txt", "notes.md", "a.heic", "b.json", "0/.hidden"):
        (folder / name).write_text("a caption")
    note = note_unread(RealConfig(path=str(folder)), frames=1)
    assert states(note, "14 files") and states(note, "4 files") and states(note, "1 more")
    assert all(states(note, name) for name in ("0/4.txt", "a.heic", "b.json"))
    for name in ("0/4.txt", "notes.md", "a.heic", "b.json"):
        (folder / name).unlink()
    assert note_unread(RealConfig(path=str(folder)), frames=1) == ""
    with refused(str(folder), "10 files", "no video"):
        real_files(RealConfig(path=str(folder)), frames=9)


def test_folders_behind_links_are_read_once(folder, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("a", "b"):
        (tmp_path / "links" / name).symlink_to(folder)
    (folder / "loop").symlink_to(folder)
    assert len(real_files(RealConfig(path=str(tmp_path / "links")), frames=1)) == 10
