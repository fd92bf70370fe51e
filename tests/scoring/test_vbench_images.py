"""VBench-I2V: its image suite, its totals, and the package on local files."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_suite import MOTIONS, SCENERY, SUBJECT, write_image_suite
from PIL import Image
from refusals import refused
from vbench_stand_in import write_stand_in

from tdmvid.config import ClipSize, VBenchConfig
from tdmvid.data.items import file_digest
from tdmvid.data.video import write_image, write_video
from tdmvid.scoring import vbench_run
from tdmvid.scoring.preflight import Preflight
from tdmvid.scoring.vbench_download import download
from tdmvid.scoring.vbench_images import RATIOS, ratio_of
from tdmvid.scoring.vbench_runner import ready, score_folder
from tdmvid.scoring.vbench_scores import I2V, T2V, read_scores, totals
from tdmvid.scoring.vbench_suite import check_videos, load_suite, shots_of

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Path(os.environ.get("TDMVID_VBENCH", ROOT / ".venv-vbench"))
SQUARE = ClipSize(9, 32, 32, 8)


def config_of(folder, **changes):
    settings = {"suite": "i2v", "video": SQUARE, "seeds": 2, "cache": str(folder / "cache")}
    return VBenchConfig(**settings | {"images": str(folder / "suite")} | changes)


def test_every_prompt_gets_the_image_that_the_list_names(tmp_path):
    suite = write_image_suite(tmp_path / "suite")
    entries = load_suite(config_of(tmp_path))
    crop = suite / "data/crop/1-1"
    scenery = str(crop / f"{SCENERY}.png")
    assert {entry.prompt: entry.image for entry in entries} == {
        SUBJECT: str(crop / f"{SUBJECT}.png"),
        SCENERY: scenery,
        **{f"{SCENERY}, {motion}": scenery for motion in MOTIONS},
    }
    shots = shots_of(entries, 9)
    assert [shot.file for shot in shots[:2]] == [f"{SUBJECT}-0.mp4", f"{SUBJECT}-1.mp4"]
    assert len(shots) == 4 * 2
    assert {shot.image_sha256 for shot in shots} == {
        file_digest(crop / f"{prompt}.png") for prompt in (SUBJECT, SCENERY)
    }


@pytest.mark.parametrize(
    "height, width, ratio",
    [(32, 32, "1-1"), (480, 720, "8-5"), (480, 832, "7-4"), (768, 1360, "16-9"), (832, 480, "1-1")],
)
def test_the_crop_is_the_nearest_ratio(height, width, ratio):
    assert ratio_of(ClipSize(9, height, width, 8)) == ratio


def test_missing_images_are_counted_and_nothing_can_be_scored(tmp_path):
    write_image_suite(tmp_path / "suite", images=False)
    checked = ready(config_of(tmp_path), load_suite(config_of(tmp_path)))
    assert checked.ready == ()
    assert {"i2v_subject", "camera_motion", "motion_smoothness"} < checked.missing.keys()
    text = checked.describe()
    assert "2 of 2 images" in text and "1-1" in text and "download_data.sh" in text
    only = replace(checked, missing={"motion": checked.missing["i2v_subject"][-1:]})
    [reason] = download(only, tmp_path / "python").values()
    assert "download_data.sh" in reason and not (tmp_path / "suite/data").exists()
    evaluation = vbench_run.Evaluation(config_of(tmp_path), [], checked)
    with refused("no dimension can be scored"):
        vbench_run.run(evaluation, tmp_path, tmp_path / "out")


def test_the_list_is_asked_for_by_its_folder(tmp_path):
    with refused(f"images='{tmp_path / 'suite'}'", "vbench2_i2v_full_info.json"):
        load_suite(config_of(tmp_path))


@pytest.mark.parametrize(
    "settings, fact",
    [
        ({"suite": "i2v"}, "images="),
        ({"images": "suite"}, "images='suite'"),
        ({"suite": "i2v", "images": "suite", "prompts": "own.csv"}, "images='suite'"),
    ],
)
def test_images_are_set_exactly_where_they_are_read(settings, fact):
    with refused(fact):
        VBenchConfig(**settings)


def test_a_table_of_prompts_and_images_is_a_suite_of_its_own(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", torch.zeros(3, 8, 8))
    (tmp_path / "own.csv").write_text("prompt,image\na cat,a.png\na dog,b.png\n")
    config = config_of(tmp_path, images="", prompts=str(tmp_path / "own.csv"))
    [cat, dog] = load_suite(config)
    assert (cat.image, dog.image) == tuple(str(tmp_path / f"{name}.png") for name in ("a", "b"))
    assert "i2v_subject" in cat.dimensions and "camera_motion" not in cat.dimensions
    with refused("camera_motion"):
        load_suite(
            config_of(tmp_path, images="", prompts=config.prompts, dimensions=("camera_motion",))
        )
    (tmp_path / "own.csv").write_text("prompt,image\na cat,a.png\na cat,b.png\n")
    with refused("'a cat'", "a.png", "b.png"):
        load_suite(config)


def test_the_package_gets_first_frames_as_png(tmp_path):
    """It reads neither videos nor every kind of image, and does not turn photos upright."""
    stills, name = tmp_path / "stills", "i2v_subject"
    write_video(
        stills / "a.mp4", torch.linspace(-0.8, 0.8, 9).expand(3, 16, 32, 9).movedim(3, 1), fps=8
    )
    photo = Image.new("RGB", (32, 16), "red")
    photo.save(stills / "b.jpg", exif=turned(photo))
    Image.new("RGBA", (8, 8)).save(stills / "c.webp")
    for letter in "abc":
        (stills / f"{letter}.txt").write_text(f"a {letter}")
    environment = write_stand_in(tmp_path / "environment")
    changes = {"prompts": str(stills), "environment": str(environment), "dimensions": (name,)}
    config = config_of(tmp_path, images="", **changes)
    entries = load_suite(config)
    digests = {shot.file: shot.file for shot in shots_of(entries, 9)}
    checked = Preflight((name,), {}, tmp_path)
    score_folder(tmp_path / "v", tmp_path / "out", config, entries, checked, digests, ["cpu"])
    request = json.loads((tmp_path / "out" / name / "request.json").read_text())
    frames = [Image.open(entry["image_name"]) for entry in request["entries"]]
    assert [frame.format for frame in frames] == ["PNG"] * 3
    assert [frame.size for frame in frames] == [(32, 16), (16, 32), (8, 8)]
    assert frames[0].getpixel((5, 5)) == pytest.approx((26, 26, 26), abs=6)
    assert frames[2].getpixel((5, 5)) == (255, 255, 255)


def turned(photo):
    """Return EXIF data of a photo that was taken with the camera on its side."""
    exif = photo.getexif()
    exif[0x0112] = 6
    return exif


def test_the_totals_weigh_camera_motion_a_tenth_and_leave_flickering_out():
    """i2v = (s + b + .1 c) / 2.1; quality = (4 x 1 + .5 d + i) / 5.5 here; total is their mean."""
    scores = {name: dimension.high for name, dimension in I2V.dimensions.items()}
    assert totals(scores, I2V) == pytest.approx({"quality": 1, "i2v": 1, "total": 1})
    scores |= {"camera_motion": 0.0, "dynamic_degree": 0.0, "temporal_flickering": 0.0}
    found = totals(scores, I2V)
    assert found["i2v"] == pytest.approx(2 / 2.1)
    assert found["quality"] == pytest.approx(5 / 5.5)
    assert found["total"] == pytest.approx((2 / 2.1 + 5 / 5.5) / 2)


@pytest.mark.parametrize("missing", I2V.counted)
def test_without_any_one_dimension_there_is_no_total(missing):
    scores = {name: 0.9 for name in I2V.counted if name != missing}
    part = totals(scores, I2V)
    assert "total" not in part and I2V.dimensions[missing].kind not in part and len(part) == 1


def test_what_both_suites_have_is_normalised_alike():
    for name in I2V.dimensions.keys() & T2V.dimensions.keys():
        assert I2V.dimensions[name].normalised(0.8) == T2V.dimensions[name].normalised(0.8)


def test_camera_motion_is_read_behind_its_means_by_motion(tmp_path):
    rows = [
        {"video_path": f"x/{name}.mp4", "video_results": score}
        for name, score in (("a", 1.0), ("b", 0.0))
    ]
    (tmp_path / "results.json").write_text(
        json.dumps({"camera_motion": [0.5, {"pan_left": 1.0, "static": float("nan")}, rows]})
    )
    assert read_scores(tmp_path / "results.json", {"camera_motion": ["a.mp4", "b.mp4"]}) == {
        "camera_motion": {"a.mp4": 1.0, "b.mp4": 0.0}
    }


def test_a_complete_run_has_totals_and_a_part_of_the_suite_says_so(tmp_path):
    config = config_of(tmp_path, seeds=5)
    whole = Preflight(I2V.counted, {}, tmp_path)
    assert vbench_run.notes(config, whole) == ()
    [note, end] = vbench_run.notes(config, Preflight(I2V.counted[1:], {}, tmp_path))
    assert "8 of 9" in note and "i2v_subject" in note and "totals" in end
    assert "images cropped to 1-1" in vbench_run.protocol(config, [])


HUB = {
    "dino_model/facebookresearch_dino_main": """
import torch

class Colour(torch.nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(2)

def dino_vitb16(**settings):
    return Colour()
""",
    "cotracker_model/facebookresearch_co-tracker_main": """
import torch

class Tracker(torch.nn.Module):
    def forward(self, video, grid_size):
        grid = torch.stack(torch.meshgrid(*2 * [torch.arange(grid_size) * 3.0], indexing="xy"), -1)
        moved = torch.arange(video.shape[1]).view(1, -1, 1, 1) * torch.tensor([2.0, 0.0])
        return grid.view(1, 1, -1, 2) + moved, None

def cotracker2(pretrained=True):
    return Tracker()
""",
}
"""Networks in place of DINO (the mean colour) and CoTracker (every point moves to the right)."""


DREAMSIM = """
import pathlib
import torch

class Colour(torch.nn.Module):
    def embed(self, x):
        return x.flatten(2).mean(2)

def dreamsim(pretrained, device="cuda", cache_dir="./models"):
    assert pretrained and pathlib.Path(cache_dir, "ensemble_lora").is_dir()
    return Colour().to(device), None
"""
"""A package in place of DreamSim (the mean colour)."""


def with_stand_in(folder):
    """Write an environment that has the real packages except DreamSim, and return its folder."""
    (folder / "stand_in").mkdir(parents=True)
    (folder / "stand_in" / "dreamsim.py").write_text(DREAMSIM)
    python = folder / "bin" / "python"
    python.parent.mkdir()
    real = (ENVIRONMENT / "bin" / "python").absolute()
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder / "stand_in"}" exec "{real}" "$@"\n')
    python.chmod(0o755)
    (folder / "lib").symlink_to((ENVIRONMENT / "lib").absolute())
    return folder


NAMES = ("i2v_subject", "i2v_background", "camera_motion", "temporal_flickering")


@pytest.mark.slow
@pytest.mark.skipif(
    not (ENVIRONMENT / "bin" / "python").exists(), reason="no environment of VBench"
)
@pytest.mark.parametrize("name", NAMES)
def test_the_package_scores_local_files(tmp_path, name):
    """The real package with networks that need no weights: a video that keeps its image has
    i2v_subject and i2v_background 1, and points that move to the right are a pan to the left.
    """
    (tmp_path / "cache" / "dreamsim_model" / "ensemble_lora").mkdir(parents=True)
    write_image_suite(tmp_path / "suite")
    for folder, code in HUB.items():
        path = tmp_path / "cache" / folder / "hubconf.py"
        path.parent.mkdir(parents=True)
        path.write_text(code)
    for file in ("dino_model/dino_vitbase16_pretrain.pth", "cotracker_model/scaled_offline.pth"):
        (tmp_path / "cache" / file).write_bytes(b"unused")
    environment = with_stand_in(tmp_path / "environment")
    changes = {"dimensions": (name,), "environment": str(environment)}
    if name == "temporal_flickering":  # the suite has no prompts for it
        (tmp_path / "own.csv").write_text(
            f"prompt,image\n{SUBJECT},suite/data/crop/1-1/{SUBJECT}.png\n"
        )
        changes |= {"images": "", "prompts": str(tmp_path / "own.csv")}
    config = config_of(tmp_path, **changes)
    entries = load_suite(config)
    files = [shot.file for shot in shots_of(entries, 9)]
    for index, file in enumerate(files):
        video = torch.full((3, 9, 32, 32), -0.8 if file.startswith(SUBJECT) else 0.6)
        video[0, :, :4, :4] = index / len(files)  # every seed is another video
        write_video(tmp_path / "videos" / file, video, fps=8)
    digests = check_videos(tmp_path / "videos", files, SQUARE)
    checked = ready(config, entries)
    assert checked.ready == (name,)
    scores = score_folder(
        tmp_path / "videos", tmp_path / "out", config, entries, checked, digests, ["cpu"]
    )[name]
    assert len(scores) == len(files)
    if name == "camera_motion":
        assert scores == {file: float(MOTIONS[0] in file) for file in files}
    else:
        assert all(score == pytest.approx(1, abs=0.01) for score in scores.values())


def test_ratios_are_those_of_their_names():
    for name, ratio in RATIOS.items():
        width, height = map(int, name.split("-"))
        assert ratio == width / height
