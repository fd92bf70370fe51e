"""Each measure on samples with known results."""

import json
import math

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.data.video import write_image, write_video
from tdmvid.guard import measures as look


def noise(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moving(frames: int = 9, side: int = 32, *, by: int = 2):
    """A video [1, 3, F, H, W] of a bright bar that moves right by a number of pixels per frame."""
    video = torch.full((1, 3, frames, side, side), -0.5)
    for frame in range(frames):
        video[:, :, frame, :, by * frame : by * frame + 4] = 0.5
    return video


def test_motion_is_the_share_of_pixels_that_change_times_the_change():
    """In each frame two of 32 columns turn bright and two dark, each by 1."""
    assert look.motion(moving()).item() == pytest.approx(4 / 32)
    assert look.motion(moving(by=0)).item() == 0


def test_flicker_tells_noise_and_alternation_from_a_steady_change():
    ramp = torch.linspace(-1, 1, 9)[None, None, :, None, None].expand(1, 3, 9, 8, 8)
    to_and_fro = torch.tensor([-1.0, 1.0] * 5)[None, None, :, None, None].expand(1, 3, 10, 8, 8)
    assert look.flicker(ramp).item() == pytest.approx(0, abs=1e-5)
    assert look.flicker(moving(by=0)).item() == 0
    assert look.flicker(to_and_fro).item() == pytest.approx(2, rel=0.01)
    assert look.flicker(noise(1, 3, 33, 32, 32)).item() == pytest.approx(math.sqrt(3), rel=0.02)


def test_contrast_scales_with_the_picture_and_ignores_its_brightness():
    video = moving() - 0.1
    assert look.contrast(2 * video).item() == pytest.approx(2 * look.contrast(video).item())
    assert look.contrast(video + 0.3).item() == pytest.approx(look.contrast(video).item())


def test_grey_has_no_saturation_and_pure_red_has_all():
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None, None].expand(1, 3, 1, 4, 4)
    assert look.saturation(moving()).item() == 0
    assert look.saturation(red).item() == 2


def test_clipped_counts_colour_values_at_either_end():
    video = torch.zeros(1, 3, 1, 2, 2)
    video[0, 0, 0, 0, 0], video[0, 1, 0, 0, 0] = 1.0, -1.0
    assert look.clipped(video).item() == pytest.approx(2 / 12)


def test_blur_lowers_sharpness_and_noise_raises_it():
    sharp = noise(1, 3, 2, 32, 32).mul(0.2)
    blurred = torch.nn.functional.avg_pool3d(sharp, (1, 3, 3), 1, (0, 1, 1))
    plain = torch.linspace(-1, 1, 32).expand(1, 3, 2, 32, 32)
    assert look.sharpness(plain).item() == pytest.approx(0, abs=1e-6)
    assert look.sharpness(blurred).item() < 0.5 * look.sharpness(sharp).item()
    assert look.sharpness(plain + sharp).item() > look.sharpness(plain).item()


def test_diversity_separates_seeds_from_prompts():
    """Two prompts with two seeds each: seeds are 0.2 apart, prompts about 1."""
    levels = torch.tensor([0.0, 0.2, 1.0, 1.2])[:, None, None, None, None]
    found = look.diversity(look.thumbnails(levels.expand(4, 3, 9, 32, 32)), ["a", "a", "b", "b"])
    assert found["seeds"].tolist() == pytest.approx([0.2, 0.2], rel=1e-3)
    assert found["prompts"].mean().item() == pytest.approx(1.0, rel=1e-3)


def test_noise_alone_is_hardly_diverse():
    """Each pixel of a 16 x 16 thumbnail averages 64 pixels of a frame of 128."""
    grainy = look.measure(noise(4, 3, 8, 128, 128), ["a", "a", "b", "b"])
    assert grainy["seeds"] < 0.25


@pytest.mark.parametrize(
    "frames, absent", [(1, {"motion", "flicker"}), (2, {"flicker"}), (3, set())]
)
def test_what_a_number_of_frames_does_not_allow_is_left_out(frames, absent):
    found = look.measure(noise(2, 3, frames, 8, 8), ["a", "b"])
    everything = {"motion", "flicker", "contrast", "saturation", "clipped", "sharpness", "prompts"}
    assert set(found) == everything - absent


@pytest.mark.parametrize("shape", [(6, 4, 8, 16, 16), (6, 4, 16, 16)], ids=["video", "image"])
def test_latent_distance_is_in_deviations_of_the_reference(shape):
    x = noise(*shape)
    mean = x.mean((0, -2, -1), keepdim=True)
    assert look.latent_distance(x, x) == 0
    assert look.latent_distance(3 * x + 1, 3 * x - 1) == pytest.approx(2 / 3, rel=0.05)
    assert look.latent_distance(mean + 2 * (x - mean), x) == pytest.approx(1, rel=1e-4)


def write_folder(folder, videos):
    for name, video in videos.items():
        write_video(folder / name, video[0], fps=8)
    return folder


def test_any_folder_of_samples_is_scored(tmp_path, capsys):
    """Files that differ only in a number at the end are seeds of one prompt. A folder of still
    images is recognized.
    """
    still = {f"a ring-{seed}.mp4": moving(by=0) for seed in (0, 1)}
    lively = {f"a ring-{seed}.mp4": moving(by=1 + seed) for seed in (0, 1)}
    folders = [
        write_folder(tmp_path / name, files | {"a bar-0.mp4": 0.5 * moving()})
        for name, files in (("still", still), ("lively", lively))
    ]
    out = tmp_path / "scores.json"
    main(["score", "samples", *map(str, folders), "--json", str(out)])
    first, second = json.loads(out.read_text())["folders"]
    assert (first["samples"], first["prompts"]) == (3, 2)
    assert first["scores"]["seeds"]["value"] == pytest.approx(0, abs=1e-3)
    assert second["scores"]["seeds"]["value"] > 0.05
    assert second["scores"]["motion"]["value"] > 2 * first["scores"]["motion"]["value"]
    table = capsys.readouterr().out
    assert "diversity between seeds" in table and "still" in table


def test_a_manifest_says_which_prompt_a_file_shows(tmp_path):
    for seed in (0, 1):
        write_image(tmp_path / f"{seed}.png", noise(3, 8, 8, seed=seed).clamp(-1, 1))
    lines = [{"file": f"{seed}.png", "prompt": "a ring", "seed": seed} for seed in (0, 1)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "scores.json"
    main(["score", "samples", str(tmp_path), "--json", str(out)])
    (found,) = json.loads(out.read_text())["folders"]
    assert found["prompts"] == 1 and "seeds" in found["scores"] and "motion" not in found["scores"]


def test_samples_of_two_sizes_are_refused(tmp_path):
    write_image(tmp_path / "a.png", torch.zeros(3, 8, 8))
    write_image(tmp_path / "b.png", torch.zeros(3, 8, 16))
    with refused("1x8x16", "1x8x8", error=SystemExit):
        main(["score", "samples", str(tmp_path)])
