"""A user error ends the program with one line that states the error and the remedy."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused, states

from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.cli import quiet
from tdmvid.cli.main import main
from tdmvid.config import load_config
from tdmvid.config.resources import CONFIGS
from tdmvid.scoring import after_training
from tdmvid.scoring.after_training import Evaluation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(tiny_json, tmp_path, monkeypatch):
    """`call("steps=2", ..., args=[...])` trains the tiny config with these settings in this
    process.
    """

    def call(*changes, args=(), config=tiny_json):
        monkeypatch.chdir(tmp_path)
        settings = [part for change in changes for part in ("--set", change)]
        main(["train", "--config", str(config), *settings, *args])

    return call


@pytest.mark.parametrize(
    "change, facts",
    [
        ("objectve.cfg=1", ("'objectve'", "'objective'")),
        ("student.lrr=1", ("'student.lrr'", "'lr'")),
        ("steps=0", ("steps=0",)),
        ("prompts.path=", ("prompts.path",)),
        ("prompts.path=nowhere.txt", ("nowhere.txt",)),
        ("prompts.path=prompts.docx", ("prompts.docx", ".txt")),
        ("model.path=nowhere/at/all", ("model.path='nowhere/at/all'",)),
        ("video.height=40", ("video.height=40", "16")),
        ("video.width=31", ("video.width=31", "16")),
        ("video.frames=6", ("video.frames=6", "8n + 1")),
        (
            'lora.targets=["to_q","to_nothing"]',
            ("lora.targets", "'to_nothing'", "CogVideoXTransformer3DModel"),
        ),
        ("grid.steps=0", ("grid.steps=0",)),
        ("grid.kind=explicit", ("grid.timesteps=[]",)),
        ("log.teacher_steps=1001", ("log.teacher_steps=1001",)),
        ("parallel.offload=optimizer", ("parallel.offload='optimizer'", "torchrun")),
        ("parallel.backend=deepspeed", ("parallel.backend='deepspeed'",)),
    ],
)
def test_a_wrong_setting_ends_with_one_line(call, change, facts):
    with refused("error", *facts, error=SystemExit):
        call(change)


def test_a_missing_config_ends_with_one_line(call):
    with refused("error", "'none.json'", error=SystemExit):
        call(config="none.json")


@pytest.mark.parametrize(
    "place, text, facts",
    [
        ("empty.txt", "\n \n", ()),
        ("bad.jsonl, line 2", '{"prompt": "a"}\n{"prompt": \n', ("JSON",)),
        ("other.jsonl, line 1", '{"text": "a"}\n', ("'prompt'", "'text'")),
    ],
)
def test_a_wrong_prompt_file_ends_with_its_name_and_line(call, tmp_path, place, text, facts):
    path = tmp_path / place.split(",")[0]
    path.write_text(text)
    with refused("error", tmp_path / place, *facts, error=SystemExit):
        call(f"prompts.path={path}")


def test_what_looks_like_a_hub_id_may_be_a_folder_seen_from_elsewhere(call, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *args, **options: Path("/nowhere/at/all").read_text(),
    )
    with refused("error", "model.path='my/teacher'", tmp_path, error=SystemExit):
        call("model.path=my/teacher")


@pytest.mark.parametrize("args", [[], ["--plan"]], ids=["train", "plan"])
def test_a_folder_that_is_no_known_pipeline_ends_with_one_line(call, tmp_path, args):
    model = tmp_path / "model"
    model.mkdir()
    with refused("error", f"model.path='{model}'", "model_index.json", error=SystemExit):
        call(f"model.path={model}", args=args)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with refused("error", "KandinskyPipeline", "CogVideoXPipeline", error=SystemExit):
        call(f"model.path={model}", args=args)


def test_a_pipeline_without_its_weights_ends_with_one_line(call, tiny_cogvideox, tmp_path):
    model = shutil.copytree(tiny_cogvideox("sincos"), tmp_path / "model")
    shutil.rmtree(model / "transformer")
    with refused("error", model / "transformer", error=SystemExit):
        call(f"model.path={model}")


def test_resume_is_refused_with_a_plan(call):
    with refused("error", "--resume='auto'", "--plan", "remove one", error=SystemExit):
        call(args=["--plan", "--resume", "auto"])


@pytest.mark.parametrize("option", [["--gpus", "8"], ["--device-memory", "80.0"], ["--ranks", "4"]])
def test_options_of_a_plan_are_refused_without_it(call, option, tmp_path):
    with refused("error", f"{option[0]}={option[1]}", "add --plan", error=SystemExit):
        call(args=["--out", "run", *option])
    assert not (tmp_path / "run").exists()


def test_the_prompts_of_an_evaluation_are_read_before_training(tmp_path):
    scored = tmp_path / "images.json"
    scored.write_text(json.dumps({"prompts": "nowhere.txt", "metrics": ["clip"]}))
    wanted = ["evaluate.program=image", f"evaluate.config={scored}"]
    with refused("nowhere.txt"):
        after_training.outlook(load_config("sd15_4nfe", wanted))


def test_a_refused_run_writes_nothing(call, tmp_path):
    with refused("lora.targets", "'x'", error=SystemExit):
        call('lora.targets=["x"]', args=["--out", "run"])
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(call, tmp_path):
    (tmp_path / "notes.txt").touch()
    with refused("error", "notes.txt", error=SystemExit):
        call(args=["--out", "notes.txt"])


def test_a_run_folder_may_be_called_like_a_number(call, capsys):
    call(args=["--out", "2024", "--plan"])
    assert re.search(r"^output folder +2024$", capsys.readouterr().out, re.M)


@pytest.mark.slow
def test_the_program_itself_prints_the_line_and_no_traceback(tiny_json):
    command = [
        sys.executable,
        "launch/train.py",
        "--config",
        str(tiny_json),
        "--set",
        "student.lrr=1",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and states(line, "'student.lrr'")


@pytest.mark.parametrize(
    "name, message, kept",
    [
        ("torchao", "Failed to load /x/_C.so: no such kernel", False),
        ("torchao", "this version is too old", True),
        (
            "torch.utils._pytree",
            "<enum 'Kind'> is an Enum subclass and is now natively supported",
            False,
        ),
        ("torch.utils._pytree", "no such node", True),
        (
            "transformers.utils.import_utils",
            "`CLIPImageProcessor` requires torchvision (not installed)",
            False,
        ),
        ("transformers.utils.import_utils", "`T5Tokenizer` requires sentencepiece", True),
    ],
)
def test_libraries_are_silent_about_what_is_not_used_and_nothing_else(
    name, message, kept, monkeypatch
):
    """Of the package as a library: the commands silence more, see tests/cli/test_quiet.py."""
    logger = logging.getLogger(name)
    own = [found for found in logger.filters if found is not quiet._only_errors]
    monkeypatch.setattr(logger, "filters", own)
    assert (
        bool(logger.filter(logger.makeRecord(name, logging.WARNING, "", 0, message, (), None)))
        is kept
    )


def test_prompts_are_embedded_ahead_once(tiny_json, tmp_path, monkeypatch, capsys):
    encoded = []
    encode = CogVideoX.encode_prompts
    monkeypatch.setattr(
        CogVideoX,
        "encode_prompts",
        lambda self, prompts: encoded.extend(prompts) or encode(self, prompts),
    )
    cache = f"prompts.cache={tmp_path / 'cache'}"
    for _ in range(2):
        main(["embed", "--config", str(tiny_json), "--set", cache])
        assert capsys.readouterr().out == f"embeddings of 8 prompts are in {tmp_path / 'cache'}\n"
        assert len(encoded) == 10  # no prompt, not even for the gallery


@pytest.mark.parametrize(
    "change, facts",
    [
        ("evaluate.program=fid", ("evaluate.program='fid'", "'vbench'")),
        ("evaluate.program=vbench", ("evaluate.config=''", "vbench")),
        (
            'evaluate={"program": "image", "config": "none.json"}',
            ("evaluate.config='none.json'",),
        ),
    ],
)
def test_an_evaluation_that_cannot_start_is_refused_before_training_and_by_the_plan(
    call, change, facts
):
    for args in ([], ["--plan"]):
        with refused("error", *facts, error=SystemExit):
            call(change, args=args)


def write_evaluation(path, **settings):
    path.write_text(
        json.dumps(
            {
                "prompts": "vbench_shapes",
                "video": {"frames": 9, "height": 32, "width": 32},
                "dimensions": ["temporal_flickering"],
            }
            | settings
        )
    )
    return path


@pytest.mark.parametrize(
    "settings, facts",
    [
        ({"promts": "x"}, ("'promts'", "'prompts'")),
        ({"prompts": "nowhere.txt", "environment": "nowhere"}, ("nowhere.txt",)),
        ({"dimensions": ["beauty"]}, ("'beauty'",)),
    ],
)
def test_an_evaluation_that_would_refuse_its_config_is_refused_before_training(
    call, tmp_path, settings, facts
):
    """The evaluation itself would print the same line, but days later."""
    path = write_evaluation(tmp_path / "vbench.json", **settings)
    with refused("error", f"evaluate.config='{path}'", *facts, error=SystemExit):
        call("evaluate.program=vbench", f"evaluate.config={path}", args=["--out", "run"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def evaluated(tiny_run, tmp_path):
    """`evaluated(environment="x")`: a run to be scored by VBench with these settings."""

    def evaluated(**settings):
        path = write_evaluation(tmp_path / "v.json", **settings)
        return tiny_run(tmp_path / "run", "evaluate.program=vbench", f"evaluate.config={path}")

    return evaluated


def test_without_vbench_s_environment_one_line_says_how_to_make_it_and_score_later(
    evaluated, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(after_training, "_call", lambda *_: pytest.fail("it scores"))
    evaluation = Evaluation(evaluated(environment="no where"))
    evaluation.announce()
    evaluation.meet()
    evaluation.run()
    start, end = capsys.readouterr().out.splitlines()
    for line in (start, end):
        assert states(line, "environment='no where'") and "eval/setup_vbench.sh 'no where'" in line
    assert f"--config {tmp_path / 'v.json'} --lora {tmp_path / 'run' / 'lora'}" in end


@pytest.mark.parametrize("dimensions, called", [(["motion_smoothness"], 0), ([], 1)])
def test_weights_that_vbench_lacks_are_said_and_the_rest_is_scored(
    evaluated, tmp_path, capsys, monkeypatch, dimensions, called
):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").touch()
    calls = []
    monkeypatch.setattr(after_training, "_call", lambda *words: calls.append(words) or 0)
    evaluation = Evaluation(
        evaluated(
            dimensions=dimensions, environment=str(tmp_path / "env"), cache=str(tmp_path / "none")
        )
    )
    evaluation.announce()
    evaluation.meet()
    evaluation.run()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert len(calls) == called
    assert "--download" in first and "--download" in last and "--lora" in last


def test_every_ready_video_config_is_scored_at_its_size_when_it_is_finished():
    """Only text-to-video configs, because the suites have no images."""
    for path in CONFIGS.glob("*.json"):
        config = load_config(path)
        if config.video.frames > 1 and "i2v" not in path.stem:
            words = after_training.score_words(config)
            assert words[:3] == ["score", "vbench", "--config"] and "--set" not in words
            small = load_config(path, ["video.frames=17"])
            assert after_training.score_words(small)[-2:] == ["--set", "video.frames=17"]
            off = load_config(path, ["evaluate={}"])
            assert not after_training.score_words(off) and not after_training.outlook(off)


def test_every_rank_takes_part_in_the_scoring_of_a_finished_run(evaluated, tmp_path, monkeypatch):
    """The evaluation uses its own port, and not the store of the launcher's agent."""
    calls = []
    monkeypatch.setattr(after_training, "_call", lambda *words: calls.append(words) or 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    evaluation = Evaluation(evaluated(), outlook=after_training.Outlook("it scores"), port=1234)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        evaluation.run()
    for (command, environment), rank in zip(calls, ("1", "0"), strict=True):
        assert command[:4] == [sys.executable, "-m", "tdmvid", "score"]
        assert command[-4:] == [
            "--config",
            str(tmp_path / "v.json"),
            "--lora",
            str(tmp_path / "run" / "lora"),
        ]
        assert environment["RANK"] == rank and environment["MASTER_PORT"] == "1234"
        assert "TORCHELASTIC_USE_AGENT_STORE" not in environment


def test_a_single_process_is_scored_without_a_launcher(evaluated, monkeypatch):
    calls = []
    monkeypatch.setattr(after_training, "_call", lambda *words: calls.append(words) or 3)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "7")):
        monkeypatch.setenv(name, value)
    evaluation = Evaluation(evaluated(), outlook=after_training.Outlook("it scores"), port=1234)
    with refused("3", "--lora", error=RuntimeError):
        evaluation.run()
    ((_, environment),) = calls
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & environment.keys()


@pytest.mark.parametrize("status, fact", [(-signal.SIGUSR1, "SIGUSR1"), (3, 3)])
def test_a_stopped_evaluation_is_not_called_a_failed_one(evaluated, monkeypatch, status, fact):
    monkeypatch.setattr(after_training, "_call", lambda *_: status)
    evaluation = Evaluation(evaluated(), outlook=after_training.Outlook("it scores"))
    with refused(fact, "tdmvid", "--lora", error=RuntimeError) as caught:
        evaluation.run()
    assert ("failed" in str(caught.value)) == (status == 3)


def test_a_signal_to_the_run_ends_its_evaluation(tmp_path):
    """Otherwise the evaluation would keep the GPUs busy after the job is queued again."""
    program = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR1); time.sleep(60)"
    assert after_training._call([sys.executable, "-c", program], os.environ) == -signal.SIGUSR1
