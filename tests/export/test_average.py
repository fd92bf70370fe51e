"""The mean of runs that started from the same weights is a student; of others it is not."""

from pathlib import Path

import pytest
import torch
from exported import PROMPTS, latents
from refusals import refused
from safetensors.torch import load_file

from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.cli.main import main
from tdmvid.config import load_config
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_run
from tdmvid.export.trained import Trained, average, check_runs
from tdmvid.train.trainer import train


@pytest.fixture
def student(tiny_json):
    """`student("runs/a", value, seed=1, **settings)`: a student with one tensor."""

    def build(run, value=0.0, **settings):
        config = load_config(tiny_json)
        known = {"training": "lora", "seed": 0, "lora": {"rank": 4}, "model": {"path": "teacher"}}
        return Trained(Path(run), config, 4, known | settings, {"a": torch.full((2, 3), value)})

    return build


def test_every_student_has_the_same_weight(student):
    found = average([student("a", 1.0), student("b", 2.0), student("c", 6.0)])
    assert torch.equal(found["a"], torch.full((2, 3), 3.0))


def test_the_mean_of_equal_students_is_that_student_to_the_bit(student):
    one = student("a")
    one.tensors["a"] = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(average([one, one, one])["a"], one.tensors["a"])


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"lora": {"rank": 8}}, "lora="),
        ({"model": {"path": "another"}}, "model.path='another'"),
        ({"model": {"path": "teacher", "guidance": 1.5}}, "model.guidance=1.5"),
        ({"model": {"path": "teacher", "pipeline": "WanPipeline"}}, "model.pipeline='WanPipeline'"),
        ({"grid": {"steps": 2}}, "grid="),
        ({"training": "full"}, "training='full'"),
        ({"objective": {"step_set": [1, 2]}}, "objective.step_set=[1, 2]"),
        ({"init": "runs/plain/lora"}, "init='runs/plain/lora'"),
        ({"seed": 1}, "seed=1"),
    ],
)
def test_students_that_differ_in_what_their_weights_mean_are_refused(student, settings, name):
    with refused("runs/b", "runs/a", name):
        average([student("runs/a"), student("runs/b", **settings)])


def test_the_seed_may_differ_if_both_start_from_a_lora(student):
    one, other = (student(f"runs/{seed}", init="runs/plain/lora", seed=seed) for seed in (0, 1))
    assert average([one, other])["a"].shape == (2, 3)


@pytest.mark.slow
def test_the_mean_of_two_runs_is_exported_and_its_card_names_both(
    run, base, tiny_run, loop_only, tmp_path, capsys
):
    settings = ("steps=3", "ema=0.5", "lora.alpha=6", "student.lr=0.02")
    other = train(tiny_run(tmp_path / "other", *settings))
    request = ExportRequest(prompts=PROMPTS)
    for name, folder in (("one", run), ("two", other)):
        export_run(tmp_path / name, folder, request)
    words = ["--run", run, "--average-with", other, "--out", tmp_path / "mean"]
    main(["export", *map(str, words), *(f"--prompt={prompt}" for prompt in PROMPTS)])
    assert "relative difference" in capsys.readouterr().out
    one, two, mean = (load_file(tmp_path / name / LORA_FILE) for name in ("one", "two", "mean"))
    for key, tensor in mean.items():
        torch.testing.assert_close(tensor, (one[key] + two[key]) / 2, rtol=1e-6, atol=1e-8)
    card = (tmp_path / "mean" / "README.md").read_text(encoding="utf-8")
    assert "Mean of the weights of 2 runs from one start: iteration 4 of 4" in card
    assert "iteration 3 of 3 (seed" in card
    drawn = [latents(base, tmp_path / name) for name in ("one", "mean")]
    assert not torch.equal(*drawn)


def test_a_run_that_is_given_twice_would_count_double(tmp_path):
    (tmp_path / "a").mkdir()
    check_runs([tmp_path / "a", tmp_path / "b"])
    with refused("average-with=", "twice"):
        check_runs([tmp_path / "a", tmp_path / "b", tmp_path / "b" / ".." / "a"])
