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


def refusal(call, *changes, **others):
    """The program's last line: exit code 1 is what sys.exit makes of a string."""
    with pytest.raises(SystemExit) as end:
        call(*changes, **others)
    assert isinstance(end.value.code, str) and "\n" not in end.value.code
    return end.value.code


@pytest.mark.parametrize(
    "change, message",
    [
        ("objectve.cfg=1", "error: unknown setting 'objectve': did you mean 'objective'?"),
        ("student.lrr=1", "error: unknown setting 'student.lrr': did you mean 'lr'?"),
        ("steps=0", "error: steps=0: a run has at least 1 step"),
        (
            "prompts.path=",
            "error: prompts.path is empty: give a .txt, .jsonl, .csv or .parquet file",
        ),
        (
            "prompts.path=nowhere.txt",
            "error: nowhere.txt: no such prompt file; paths are relative to",
        ),
        (
            "prompts.path=prompts.docx",
            "error: prompts.docx: unknown kind of prompt file '.docx': use .txt",
        ),
        (
            "model.path=nowhere/at/all",
            (
                r"error: model.path='nowhere/at/all' is no folder here and no hub id"
                r" \(owner/name\); paths are relative to /"
            ),
        ),
        ("video.height=40", "error: video.height=40 does not divide by 16"),
        ("video.width=31", "error: video.width=31 does not divide by 16"),
        ("video.frames=6", r"error: video.frames=6: this autoencoder decodes 1 or 8n \+ 1 frames"),
        (
            'lora.targets=["to_q","to_nothing"]',
            "error: lora.targets: 'to_nothing' names no module of CogVideoXTransformer3DModel",
        ),
        ("grid.steps=0", "error: grid.steps=0: a student needs at least one step"),
        (
            "grid.kind=explicit",
            r"error: grid.timesteps=\[\]: list network timesteps in falling order",
        ),
        ("log.teacher_steps=1001", "error: log.teacher_steps=1001: too many for the teacher"),
        (
            "parallel.offload=optimizer",
            (
                "error: parallel.offload='optimizer' without a launcher: .* start with `deepspeed"
                " launch/train.py"
            ),
        ),
        ("parallel.backend=deepspeed", "error: parallel.backend='deepspeed' but no launcher"),
    ],
)
def test_a_wrong_setting_ends_with_one_line(call, change, message):
    assert re.match(message, refusal(call, change))


def test_a_missing_config_ends_with_one_line(call):
    assert (
        refusal(call, config="none.json")
        == "error: config 'none.json' does not exist: the ready ones are in configs/"
    )


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("empty.txt", "\n \n", "has no prompts: at least one is needed"),
        ("bad.jsonl", '{"prompt": "a"}\n{"prompt": \n', "bad.jsonl, line 2: .* is not JSON"),
        (
            "other.jsonl",
            '{"text": "a"}\n',
            "other.jsonl, line 1: no column 'prompt'; the columns are 'text'",
        ),
    ],
)
def test_a_wrong_prompt_file_ends_with_its_name_and_line(call, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert re.match(f"error: .*{message}", refusal(call, f"prompts.path={tmp_path / name}"))


def test_what_looks_like_a_hub_id_may_be_a_folder_seen_from_elsewhere(call, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *args, **options: open("/nowhere/at/all")
    )
    assert re.match(
        f"error: model.path='my/teacher' is no folder in {tmp_path} and could not be fetched from"
        " the hub",
        refusal(call, "model.path=my/teacher"),
    )


@pytest.mark.parametrize("args", [[], ["--plan"]], ids=["train", "plan"])
def test_a_folder_that_is_no_known_pipeline_ends_with_one_line(call, tmp_path, args):
    model = tmp_path / "model"
    model.mkdir()
    assert re.match(
        "error: model.path=.* has no model_index.json: point to a diffusers",
        refusal(call, f"model.path={model}", args=args),
    )
    (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert re.match(
        "error: model.path=.* is a FluxPipeline: known .* CogVideoXPipeline",
        refusal(call, f"model.path={model}", args=args),
    )


def test_a_pipeline_without_its_weights_ends_with_one_line(call, tiny_cogvideox, tmp_path):
    model = shutil.copytree(tiny_cogvideox("sincos"), tmp_path / "model")
    shutil.rmtree(model / "transformer")
    assert re.match(
        "error: model.path=.* is not whole .*: copy or download the folder again",
        refusal(call, f"model.path={model}"),
    )


def test_a_refused_run_writes_nothing(call, tmp_path):
    refusal(call, 'lora.targets=["x"]', args=["--out", "run"])
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_run_folder(call, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert (
        refusal(call, args=["--out", "notes.txt"])
        == "error: out='notes.txt': notes.txt is a file, and a folder is to be there: give another"
    )


def test_a_run_folder_may_be_called_like_a_number(call, capsys):
    call(args=["--out", "2024", "--plan"])
    assert re.search(r"^writes +2024$", capsys.readouterr().out, re.M)


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
    assert done.returncode == 1 and done.stderr.splitlines() == [
        "error: unknown setting 'student.lrr': did you mean 'lr'?"
    ]


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
    "change, message",
    [
        (
            "evaluate.program=fid",
            "error: evaluate.program='fid': choose one of '', 'vbench', 'image', 'shapes'",
        ),
        (
            "evaluate.program=vbench",
            (
                "error: evaluate.config='': vbench needs a config file, the ready ones are in"
                " eval/configs/"
            ),
        ),
        (
            'evaluate={"program": "image", "config": "none.json"}',
            (
                "error: evaluate.config='none.json' does not exist: the ready ones are in"
                " eval/configs/"
            ),
        ),
    ],
)
def test_an_evaluation_that_cannot_start_is_refused_before_training_and_by_the_plan(
    call, change, message
):
    assert re.match(message, refusal(call, change)) and re.match(
        message, refusal(call, change, args=["--plan"])
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"promts": "x"}, "unknown setting 'promts': did you mean 'prompts'"),
        (
            {"environment": "nowhere"},
            (
                "VBench's prompts come with its environment, and nowhere has none: run"
                " eval/setup_vbench.sh"
            ),
        ),
    ],
)
def test_an_evaluation_that_would_refuse_its_config_is_refused_before_training(
    call, tmp_path, settings, message
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
    said = refusal(
        call, "evaluate.program=vbench", f"evaluate.config={path}", args=["--out", "run"]
    )
    assert (
        said.startswith(
            f"error: evaluate.config='{path}', which the end of the run needs: {message}"
        )
        and not (tmp_path / "run").exists()
    )


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
    with pytest.raises(
        RuntimeError,
        match="the run is finished, but its evaluation ended with 1; once that is mended: ",
    ):
        after_training.evaluate(config)
