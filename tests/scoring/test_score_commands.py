"""The scoring commands on a tiny student and its teacher, with fake metrics that need no
weights.
"""

import json
import shutil

import pytest
from refusals import refused
from vbench_stand_in import write_stand_in

from tdmvid.cli.main import main
from tdmvid.config import load_config
from tdmvid.scoring.preflight import Preflight
from tdmvid.train.trainer import train

PROMPTS = ['a "red" circle', "a blue square", "a red square"]


@pytest.fixture(scope="module")
def student(tiny_cogvideox, tmp_path_factory):
    """The lora/ folder of a run of one step. Its clips are single frames of 32 x 32."""
    folder = tmp_path_factory.mktemp("student")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "run.json").write_text(
        json.dumps(
            {
                "model": {"path": str(tiny_cogvideox("sincos"))},
                "video": {"frames": 9, "height": 32, "width": 32},
                "out": str(folder / "run"),
                "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
                "steps": 1,
                "lora": {"rank": 2, "alpha": 4},
                "log": {"sample_every": 0, "teacher_steps": 2, "sample_count": 1},
            }
        )
    )
    train(load_config(folder / "run.json"))
    return folder / "run" / "lora"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """`call("score", "vbench", "--config", ...)` runs `tdmvid` in this process and returns its
    output.
    """

    def call(*words):
        monkeypatch.chdir(tmp_path)
        main([str(word) for word in words])
        return capsys.readouterr().out

    return call


def settings(tmp_path, student, **changes):
    model = json.loads((student.parent / "config.json").read_text())["model"]["path"]
    path = tmp_path / "eval.json"
    path.write_text(
        json.dumps(
            {
                "prompts": str(student.parent.parent / "prompts.txt"),
                "model": {"path": model},
                "seeds": 2,
                "batch": 4,
                "teacher": {"steps": 2, "cfg": 2.0},
                "embeddings": str(student.parent.parent / "cache"),
            }
            | changes
        )
    )
    return path


@pytest.mark.slow
def test_vbench_run_samples_once_scores_and_compares(tmp_path, student, call, monkeypatch):
    write_stand_in(tmp_path / "env")
    config = settings(
        tmp_path,
        student,
        dimensions=["temporal_flickering"],
        environment=str(tmp_path / "env"),
        video={"frames": 9, "height": 32, "width": 32},
    )
    words = ("score", "vbench", "--config", config, "--lora", student, "--out", tmp_path / "out")
    text = call(*words)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["differences"]["temporal_flickering"] == pytest.approx(
        {"value": 0.05, "low": 0.05, "high": 0.05}
    )
    assert (
        "| temporal_flickering | 60.00 [60.00, 60.00] | 55.00" in text
        and "Partial: 1 of 16" in text
    )
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.mp4")}
    assert len(made) == 2 * 3 * 2
    next(iter(made)).unlink()
    call(*words)
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.mp4")}
    assert (
        sum(again[path] != made[path] for path in made) == 1
    )  # only the missing one was sampled again
    call(*words, "--stage", "score")
    monkeypatch.setenv("RANK", "1")
    assert not call(*words, "--stage", "score")  # only the first process of a launcher scores
    monkeypatch.delenv("RANK")
    with refused("teacher", "steps=2", "3", "--out", error=SystemExit):
        call(*words, "--stage", "score", "--set", "teacher.steps=3")
    with refused("student", "model", "'a/base'", "--out", error=SystemExit):
        call(*words, "--stage", "score", "--set", "model.path=a/base")
    other = shutil.copytree(student, tmp_path / "other")
    (other / "scheduler_config.json").write_text("{}")
    with refused("student", "weights", error=SystemExit):
        call(
            "score",
            "vbench",
            "--config",
            config,
            "--lora",
            other,
            "--out",
            tmp_path / "out",
            "--stage",
            "score",
        )


@pytest.mark.parametrize(
    "metric, change, facts",
    [
        ("text", {}, ("plain.txt",)),
        ("fid", {"seeds": 1}, ("4", "2 images")),
        ("precision_recall", {"reference": "nowhere"}, ("reference='nowhere'", "images")),
    ],
)
def test_what_could_not_be_measured_is_refused_before_it_is_sampled(
    tmp_path, student, call, monkeypatch, metric, change, facts
):
    (tmp_path / "plain.txt").write_text("a red circle\na blue square\n")
    monkeypatch.setattr(
        "tdmvid.scoring.image_run.preflight",
        lambda metrics, *_, **__: Preflight(tuple(metrics), {}, tmp_path),
    )  # as if its files existed
    config = settings(
        tmp_path,
        student,
        video={"frames": 1, "height": 32, "width": 32},
        prompts=str(tmp_path / "plain.txt"),
        metrics=[metric],
        **change,
    )
    with refused(*facts, error=SystemExit):
        call("score", "images", "--config", config, "--lora", student, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_sampled_when_nothing_can_be_measured(tmp_path, student, call, capsys):
    config = settings(
        tmp_path,
        student,
        cache=str(tmp_path / "none"),
        video={"frames": 1, "height": 32, "width": 32},
        metrics=["hps"],
    )
    with refused("metrics=['hps']", error=SystemExit):
        call("score", "images", "--config", config, "--lora", student, "--out", tmp_path / "out")
    assert "hps/HPS_v2.1_compressed.pt" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--preflight"], ["--out", "out"]], ids=["preflight", "run"])
def test_nothing_is_sampled_without_the_environment_that_scores(
    tmp_path, student, call, monkeypatch, words
):
    monkeypatch.setattr("tdmvid.parallel.launch.start", lambda *_, **__: pytest.fail("it works"))
    config = settings(
        tmp_path,
        student,
        dimensions=["temporal_flickering"],
        environment=str(tmp_path / "env"),
        video={"frames": 9, "height": 32, "width": 32},
    )
    with refused(
        f"environment='{tmp_path / 'env'}'", "bin/python", "eval/setup_vbench.sh", error=SystemExit
    ):
        call("score", "vbench", "--config", config, "--lora", student, *words)


@pytest.mark.slow
def test_image_run_compares_prompt_by_prompt_and_names_what_it_left_out(
    tmp_path, student, call, monkeypatch
):
    monkeypatch.setattr(
        "tdmvid.scoring.image_metrics.text.legibility",
        lambda file, text: 0.25 + 0.5 * ("student" in file.parts) if text == "red" else None,
    )
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    config = settings(
        tmp_path,
        student,
        metrics=["text", "hps"],
        cache=str(tmp_path / "none"),
        video={"frames": 1, "height": 32, "width": 32},
    )
    call("score", "images", "--config", config, "--lora", student, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        found["model"]["path"] == json.loads(config.read_text())["model"]["path"]
        and found["model"]["dtype"] == "float32"
    )  # the model that computed them
    assert found["differences"] == {
        "text": {"value": 0.5, "low": None, "high": None}
    }  # one prompt asks for text
    assert found["notes"] == [
        "Left out: hps.",
        "The student was trained on size 9 x 32 x 32 at 8 fps, and is scored on 1 x 32 x 32.",
        "The student was trained with no guidance, and its teacher is sampled with guidance 2.",
    ]
    assert len(list((tmp_path / "out" / "teacher").glob("*.png"))) == 6


def test_a_preflight_needs_no_student_and_names_the_files(tmp_path, student, call):
    config = settings(
        tmp_path,
        student,
        cache=str(tmp_path / "none"),
        video={"frames": 1, "height": 32, "width": 32},
        metrics=["hps", "fid"],
    )
    text = call("score", "images", "--config", config, "--preflight")
    assert (
        "hps/HPS_v2.1_compressed.pt" in text
        and "weights-inception" in text
        and str(tmp_path / "none") in text
    )


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"seeds": 1, "metrics": ["diversity"]}, ("seeds=1", "diversity", "2")),
        ({"metrics": ["fvd"]}, ("metrics", "'fvd'")),
        ({"video": {"frames": 9, "height": 32, "width": 32}}, ("video.frames=9",)),
        ({"promts": "x"}, ("'promts'", "'prompts'")),
    ],
)
def test_a_wrong_setting_ends_with_one_line(tmp_path, student, call, change, facts):
    with refused(*facts, error=SystemExit):
        call(
            "score", "images", "--config", settings(tmp_path, student, **change), "--lora", student
        )


def test_settings_of_a_base_that_is_not_named_are_refused(tmp_path, student, call, monkeypatch):
    """Otherwise the student's own base would be loaded in its own dtype, while the results would
    state another.
    """
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    config = settings(
        tmp_path,
        student,
        metrics=["text"],
        model={"dtype": "bfloat16"},
        video={"frames": 1, "height": 32, "width": 32},
    )
    with refused("error", "model.path", error=SystemExit):
        call("score", "images", "--config", config, "--lora", student, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "student").exists()


@pytest.mark.slow
def test_a_benchmark_is_sampled_into_its_scorer_s_folders(tmp_path, student, call):
    rows = [
        {"tag": "single_object", "prompt": "a red circle"},
        {"tag": "two_object", "prompt": "a blue square"},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = json.loads((student.parent / "config.json").read_text())["model"]["path"]
    call(
        "benchmark",
        "--benchmark",
        "geneval",
        "--prompts",
        tmp_path / "m.jsonl",
        "--seeds",
        2,
        "--lora",
        student,
        "--model",
        model,
        "--size",
        "1x32x32",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "out",
        "--cache",
        student.parent.parent / "cache",
    )
    assert sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("0*.png")
    ) == [f"0000{prompt}/samples/0000{seed}.png" for prompt in range(2) for seed in range(2)]
    assert json.loads((tmp_path / "out/00001/metadata.jsonl").read_text()) == rows[1]
