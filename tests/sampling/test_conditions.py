"""Every number of steps can be sampled under every condition on K, and one page shows all pairs."""

import json
import shutil

import pytest
import torch
from PIL import Image
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdmvid.cli.main import main
from tdmvid.data.video import read_video


@pytest.fixture
def told(student, tmp_path):
    """The students of a run over K = 1 and 2; they differ in their weights."""
    names = ["lora", "lora_1steps"]
    for name, steps in zip(names, (2, 1), strict=True):
        folder = shutil.copytree(student, tmp_path / name)
        facts = json.loads((folder / "export.json").read_text())
        (folder / "export.json").write_text(json.dumps(facts | {"steps": steps, "set": names}))
    [weights] = (tmp_path / "lora_1steps").glob("*.safetensors")
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights, metadata)
    return tmp_path


def grid(told, *options):
    out = told / "grid"
    common = ["--prompt", "a red square", "--count", "2", "--teacher-steps", "2", "--cfg", "2"]
    main(["score", "conditions", str(told / "lora"), "--out", str(out), *common, *options])
    return out


def test_each_cell_is_another_sample_of_the_same_noise(told, capsys):
    out = grid(told, "--steps", "1", "2")
    figures = json.loads((out / "conditions.json").read_text())
    pairs = [(cell["told"], cell["steps"]) for cell in figures["cells"]]
    assert pairs == [(1, 1), (1, 2), (2, 1), (2, 2)]
    videos = [
        read_video(min((out / f"told_{k}_steps_{steps}").glob("*.mp4"))) for k, steps in pairs
    ]
    for index, video in enumerate(videos):
        assert not any(torch.equal(video, other) for other in videos[:index])
    page = (out / "conditions.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "K = 2" in page
    assert str(out / "conditions.html") in capsys.readouterr().out
    with Image.open(out / "conditions.jpg") as overview:  # the teacher's row, and one for each K
        assert overview.width > 4 * 64 and overview.height > 3 * 64


def test_samples_of_earlier_calls_are_not_counted(told):
    out = grid(told, "--steps", "1")
    asked = (out / "conditions.json").read_text()
    for folder in out.glob("*/"):
        for video in list(folder.glob("*.mp4"))[:1]:
            shutil.copy(video, folder / "00007_a-blue-ring-0.mp4")
    assert (grid(told, "--steps", "1") / "conditions.json").read_text() == asked


def test_a_student_of_one_number_of_steps_has_no_grid(told):
    shutil.rmtree(told / "lora_1steps")
    with refused(told / "lora", "objective.step_set", error=SystemExit):
        grid(told)
