"""What a user gets wrong ends the program with one line that says what and how to mend it."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused, states

from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.cli.main import main
from tdmvid.scoring import after_training

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def call(tiny_json, tmp_path, monkeypatch):
    """`call("steps=2", ..., args=[...])` trains in this process, on the tiny config with
    these settings.
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
        ("parallel.offload=optimizer", ("parallel.offload='optimizer'", "deepspeed")),
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
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with refused("error", "FluxPipeline", "CogVideoXPipeline", error=SystemExit):
        call(f"model.path={model}", args=args)


def test_a_pipeline_without_its_weights_ends_with_one_line(call, tiny_cogvideox, tmp_path):
    model = shutil.copytree(tiny_cogvideox("sincos"), tmp_path / "model")
    shutil.rmtree(model / "transformer")
    with refused("error", f"model.path='{model}'", error=SystemExit):
        call(f"model.path={model}")


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
    assert re.search(r"^writes +2024$", capsys.readouterr().out, re.M)


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
def test_libraries_are_silent_about_what_is_not_used_and_nothing_else(name, message, kept):
    logger = logging.getLogger(name)
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
        assert capsys.readouterr().out == f"8 prompts are embedded in {tmp_path / 'cache'}\n"
        assert len(encoded) == 10  # no prompt, and the gallery's, too


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


@pytest.mark.parametrize(
    "settings, facts",
    [
        ({"promts": "x"}, ("'promts'", "'prompts'")),
        ({"environment": "nowhere"}, ("nowhere", "eval/setup_vbench.sh")),
    ],
)
@pytest.mark.slow
def test_an_evaluation_that_would_refuse_its_config_is_refused_before_training(
    call, tmp_path, settings, facts
):
    """By the evaluating program itself, which days later would end with the same line."""
    path = tmp_path / "vbench.json"
    path.write_text(
        json.dumps(
            {
                "model": {"path": "x/y"},
                "video": {"frames": 9, "height": 32, "width": 32},
                "dimensions": ["motion_smoothness"],
            }
            | settings
        )
    )
    with refused("error", f"evaluate.config='{path}'", *facts, error=SystemExit):
        call("evaluate.program=vbench", f"evaluate.config={path}", args=["--out", "run"])
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_scored_by_a_process_of_its_own(tiny_run, tmp_path, monkeypatch):
    """By the first rank alone, on as many ranks as the machine had, and with nothing of the
    launcher's in the environment.
    """
    (tmp_path / "v.json").write_text("{}")
    config = tiny_run(
        tmp_path / "run", "evaluate.program=vbench", f"evaluate.config={tmp_path / 'v.json'}"
    )
    calls = []
    monkeypatch.setattr(
        after_training.subprocess,
        "run",
        lambda command, env: (
            calls.append((command, env)) or subprocess.CompletedProcess(command, len(calls) - 1)
        ),
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        after_training.evaluate(config)
    ((command, env),) = calls
    assert command[:6] == [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    assert command[-4:] == [
        "--config",
        str(tmp_path / "v.json"),
        "--lora",
        str(tmp_path / "run" / "lora"),
    ]
    assert not {"RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"} & env.keys()
    with refused("1", error=RuntimeError):
        after_training.evaluate(config)
