"""Settings of a sampler: what it accepts, records, and refuses to mix in one folder."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from refusals import refused

from tdmvid.config import ClipSize
from tdmvid.config.ranges import check_options
from tdmvid.data.video import read_video
from tdmvid.parallel.launch import World
from tdmvid.sampling import sample
from tdmvid.sampling.manifest import claim_folder
from tdmvid.sampling.sample import Sampler
from tdmvid.sampling.student import load_for_sampling

PROMPTS = ["a red circle moves left", "a blue square", "a red square"]
ONE = World(0, 1, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"sampler": Sampler(steps=3, cfg=1.0)}, ("steps=2", "3", "--out")),
        ({"sampler": Sampler(steps=2, cfg=2.0)}, ("cfg=1.0", "2.0", "--out")),
    ],
)
def test_another_setting_in_the_same_folder_is_refused(make, change, facts):
    make("out", PROMPTS[:1], (0,))
    with refused(*facts):
        make("out", PROMPTS[:1], (0,), **change)


def test_a_folder_keeps_a_setting_that_a_later_call_leaves_out(tmp_path):
    settings = {"video": {"frames": 1, "height": 8, "width": 8}, "cfg": 4.0}
    claim_folder(tmp_path, settings | {"cfg_2": 3.0, "student": "a"}, [])
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.mp4"}\n')
    claim_folder(tmp_path, settings | {"cfg_2": 3.0, "student": "b"}, [])
    with refused("cfg_2=3.0", "None", "--out"):
        claim_folder(tmp_path, settings, [])


def test_a_setting_inside_another_that_differs_is_named_alone(tmp_path):
    model = {"path": "a/folder/with/a/long/name", "tiling": False, "dtype": "bfloat16"}
    size = {"video": {"frames": 1, "height": 8, "width": 8}}
    claim_folder(tmp_path, size | {"model": model}, [])
    (tmp_path / "manifest.jsonl").write_text('{"file": "a.mp4"}\n')
    with refused("model.tiling=False", "True") as caught:
        claim_folder(tmp_path, size | {"model": model | {"tiling": True}}, [])
    assert "path" not in str(caught.value) and "bfloat16" not in str(caught.value)


def test_a_folder_without_a_sample_takes_other_settings(tmp_path):
    """As after an error while prompts were embedded."""
    settings = {"video": {"frames": 1, "height": 8, "width": 8}}
    claim_folder(tmp_path, settings | {"cfg": 4.0}, [])
    claim_folder(tmp_path, settings | {"cfg": 5.0}, [])


def test_a_shift_that_a_model_cannot_have_is_refused_before_the_folder_is_claimed(make, tmp_path):
    with refused("shift=3", "omit it"):
        make("out", sampler=Sampler(steps=2, shift=3.0))
    assert not (tmp_path / "out").exists()
    make("out", PROMPTS[:1], (0,))


def test_guidance_of_the_second_expert_is_refused_where_guidance_is_off(monkeypatch):
    monkeypatch.setattr(sample, "steps_and_cfg", lambda backbone, sampler: (2, 1.0))
    with refused("cfg_2=3 has no effect with cfg=1"):
        sample._settings(
            SimpleNamespace(pipeline_class="WanPipeline"), Sampler(steps=2, cfg=1.0, cfg_2=3.0)
        )


@pytest.mark.parametrize("shift", [math.nan, -3.0])
def test_a_shift_that_no_grid_has_is_refused(shift):
    with refused("--shift"):
        check_options({"shift": shift})


def test_a_shift_is_refused_for_a_student(monkeypatch):
    """It would bend the times that the student was trained with."""
    monkeypatch.setattr(sample, "steps_and_cfg", lambda backbone, sampler: (4, 1.0))
    with refused("shift=12 has no effect on a student"):
        backbone = SimpleNamespace(pipeline_class="WanPipeline")
        sample._settings(backbone, Sampler(Path("lora"), steps=4, shift=12.0))


def test_another_student_in_the_same_place_is_refused(make, student, tmp_path):
    place = shutil.copytree(student, tmp_path / "lora")
    make("out", PROMPTS[:1], (0,), sampler=Sampler(place))
    moved = place.rename(tmp_path / "moved")
    make("out", PROMPTS[:2], (0,), sampler=Sampler(moved))  # the same student in another folder
    weights = moved / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with refused("weights"):
        make("out", sampler=Sampler(moved))


def test_another_prompt_under_the_same_name_is_refused(make):
    long = "a red circle moves left " * 4
    make("out", [long + "a"], (0,))
    with refused(f"'{long}a'", f"'{long}b'", "seed 0"):
        make("out", [long + "b"], (0,))


def test_the_student_s_bundle_decides_steps_size_and_base(make, student, backbone, tmp_path):
    found = load_for_sampling(ONE, student=student)
    assert (found.size, found.config.path) == (ClipSize(9, 32, 32, 5), str(backbone.folder))
    manifest = make("student", PROMPTS[:1], (0,), sampler=Sampler(student))
    assert (manifest[0]["settings"]["steps"], manifest[0]["settings"]["cfg"]) == (2, 1.0)
    make("teacher", PROMPTS[:1], (0,))  # the teacher after the student, on the same backbone
    teacher, small = (
        read_video(next((tmp_path / name).glob("*.mp4"))) for name in ("teacher", "student")
    )
    assert (teacher - small).abs().mean() > 0.01
    assert not any("lora" in name for name, _ in backbone.network.named_parameters())


def test_what_a_student_was_not_trained_for_is_said_beside_its_videos(make, student, capsys):
    [made] = make("more", PROMPTS[:1], (0,), sampler=Sampler(student, steps=4, cfg=3.0))
    steps, guidance = made["settings"]["untrained"]
    assert "2" in steps and "4" in steps and "cfg=3" in guidance
    assert steps in capsys.readouterr().out
    [made] = make("trained", PROMPTS[:1], (0,), sampler=Sampler(student))
    assert "untrained" not in made["settings"]


@pytest.mark.parametrize(
    "change",
    [
        *({"cfg": x} for x in (0.0, 0.5, -1.0, math.nan)),
        {"cfg_2": 0.5},
        {"steps": 0},
        {"steps": -1},
    ],
    ids=str,
)
def test_numbers_that_no_sampler_takes_are_refused(make, student, change):
    [(name, value)] = change.items()
    for folder in (student, None):
        with refused(f"{name}={value}", "1,000"):
            make("out", PROMPTS[:1], (0,), sampler=Sampler(folder, **change))


def test_a_teacher_samples_as_its_pipeline_does_by_default(make):
    settings = make("out", PROMPTS[:1], (0,), sampler=Sampler())[0]["settings"]
    assert (settings["steps"], settings["cfg"]) == (50, 6.0)
