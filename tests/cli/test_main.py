"""Command line: help and typos work without torch, and every error is one line."""

import ast
import importlib.metadata
import io
import json
import subprocess
import sys
import zipfile

import pytest
import safetensors.torch
from refusals import refused, states

from tdmvid.cli import benchmark, train
from tdmvid.cli.leave import errors_as_one_line, run_program
from tdmvid.cli.main import COMMANDS, command_parser, main
from tdmvid.config import VBenchConfig
from tdmvid.parallel import launch
from tdmvid.sampling.student import load_for_sampling
from tdmvid.scoring.benchmark_layouts import LAYOUTS
from tdmvid.scoring.paired_samples import _backbone

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
from tdmvid.cli.main import COMMANDS, main
for words in sys.argv[1:]:
    try:
        main(words.split())
    except SystemExit as end:
        print("code", end.code)
"""
ANSWERED = {
    "--help": "0",
    "trian": "2",
    "train --confg x": "2",
    **{f"{name} --help": "0" for name in COMMANDS},
    "train --config nowhere": "error: config 'nowhere'",
    "plan --config shapes_4nfe --set objectve.cfg=1": "error: unknown setting 'objectve'",
    "embed --config shapes_4nfe --set steps=0": "error: steps=0",
    "score vbench --config shapes --set promts=x": "error: unknown setting 'promts'",
    "score images --config images --set seeds=0": "error: seeds=0",
}


def test_help_and_typos_are_answered_without_torch():
    words = [sys.executable, "-c", WITHOUT_TORCH, *ANSWERED]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = [line[5:] for line in done.stdout.splitlines() if line.startswith("code ")]
    assert len(codes) == len(ANSWERED)
    for code, expected in zip(codes, ANSWERED.values(), strict=True):
        assert code.startswith(expected)


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("a=1: too\nlarge"), "error: a=1: too large"),
        (FileNotFoundError(2, "No such file", "x"), "error: [Errno 2] No such file: 'x'"),
        (RuntimeError(), "error: RuntimeError"),
        (MemoryError(), "error: out of memory"),
        (RuntimeError("CUDA out of memory.\n Tried to"), "error: out of memory"),
        (StopIteration(), "error: StopIteration"),
        (NotImplementedError("of this\nkind"), "error: NotImplementedError: of this kind"),
        (AttributeError("no attribute 'get'"), "error: AttributeError: no attribute 'get'"),
        (RecursionError("too deep"), "error: RecursionError: too deep"),
        (OverflowError("x" * 10**5), "error: OverflowError: xxx"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_and_a_status(monkeypatch, error, code):
    monkeypatch.delenv("TDMVID_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end, errors_as_one_line():
        raise error
    assert end.value.code == code or end.value.code.startswith(str(code))
    assert len(str(end.value.code)) < 600 and "\n" not in str(end.value.code)


@pytest.mark.parametrize(
    "library",
    [
        lambda: json.loads("{"),
        lambda: safetensors.torch.load(b"x" * 100),
        lambda: importlib.metadata.version("no-such-package"),
        lambda: ast.literal_eval("-" * 10_000 + "1"),
        lambda: zipfile.ZipFile(io.BytesIO(b"no zip")),
    ],
)
def test_what_a_library_raises_ends_in_one_line(library, monkeypatch):
    monkeypatch.delenv("TDMVID_TRACEBACK", raising=False)
    with refused("error", error=SystemExit):
        run_program(library)


def test_a_traceback_is_shown_on_request_and_for_what_is_our_own_mistake(monkeypatch):
    with pytest.raises(KeyError), errors_as_one_line():
        raise KeyError("x")
    monkeypatch.setenv("TDMVID_TRACEBACK", "1")
    with pytest.raises(ValueError), errors_as_one_line():
        raise ValueError("x")


def test_a_closed_pipe_ends_quietly():
    program = "from tdmvid.cli.leave import *\nwith errors_as_one_line():\n while True: print('x')"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.readline()
        running.stdout.close()
        assert running.wait(60) == 141 and running.stderr.read() == b""


@pytest.mark.parametrize("words", ["--help", "plan --help"])
def test_a_reader_who_leaves_at_once_sees_no_traceback(words):
    with subprocess.Popen(
        [sys.executable, "-m", "tdmvid", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        running.stdout.close()
        assert running.wait(60) in (0, 141) and running.stderr.read() == b""


def test_a_pipe_to_another_process_is_not_the_reader_of_the_output():
    with refused("error", error=SystemExit), errors_as_one_line():
        raise BrokenPipeError(32, "Broken pipe")


def test_a_long_value_of_an_option_is_cut():
    words = [sys.executable, "-m", "tdmvid", "plan", "--config", "x", "--ranks", "1" * 5000]
    done = subprocess.run(words, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "--ranks" in last and len(last) < 200


def test_a_launcher_may_put_its_option_before_the_command_and_the_run_remembers_what_was_typed(
    monkeypatch,
):
    seen = []
    monkeypatch.setattr("tdmvid.cli.train.run", seen.append)
    main(["--local_rank=1", "train", "--local_rank=1", "--config", "a b.json"])
    assert seen[0].command_line == "tdmvid train --config 'a b.json'"


@pytest.mark.parametrize(
    "words",
    [
        "train --config=~/a --resume=~/a",
        "sample --prompts=~/a --images=~/a --out=~/a --lora=~/a --model=~/a --cache=~/a",
        "benchmark --benchmark=coco --prompts=~/a --out=~/a --lora=~/a --model=~/a --cache=~/a",
        "prompts ~/a --out=~/a",
        "playground --lora=~/a --model=~/a --cache=~/a",
        "latency --lora=~/a --model=~/a --json=~/a",
        "export --published=~/a --out=~/a --model=~/a --image=~/a --checkpoint=~/a",
        "score shapes --run=~/a --lora=~/a --model=~/a --json=~/a",
        "score vbench --config=~/a --out=~/a",
        "study fit --key=~/a --a=~/a --b=~/a --model=~/a --out=~/a ~/a",
    ],
)
def test_every_path_may_begin_in_the_home_folder(words, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command, *rest = words.split()
    values = vars(command_parser(command).parse_args(rest)).values()
    paths = [
        str(one) for value in values for one in (value if isinstance(value, list) else [value])
    ]
    assert paths.count(str(tmp_path / "a")) == words.count("~")


def test_a_missing_base_is_named_by_what_sets_it(tmp_path):
    world = launch.start("none")
    with refused("--model is missing"):
        load_for_sampling(world)
    with refused("model.path is missing"):
        _backbone(VBenchConfig(), tmp_path, world)


@pytest.mark.parametrize("command", ["sample", "benchmark", "playground", "latency", "export"])
def test_every_command_that_loads_a_base_can_choose_its_files_and_pipeline(command):
    known = command_parser(command).format_help()
    assert all(option in known for option in ("--revision", "--variant", "--pipeline"))


def test_the_folder_of_a_run_may_begin_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = command_parser("train").parse_args(["--config=shapes_4nfe", "--out=~/a"])
    assert train.read_config(args).out == "/home/me/a"


@pytest.mark.parametrize(
    "words",
    [
        "sample --prompts=p --out=notes.txt",
        "benchmark --benchmark=coco --prompts=p --out=notes.txt/b",
        "prompts videos:5 --out=notes.txt/p.txt",
        "latency --lora=l --json=notes.txt/a.json",
        "score shapes --json=notes.txt/a.json",
        "score samples v --json=folder",
        "score modes v --out=notes.txt",
        "score conditions l --prompt=p --out=notes.txt",
        "study make --a=a --b=b --out=folder",
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SystemExit):
        main(words.split())
    option, value = words.split()[-1].split("=")
    message = capsys.readouterr().err.splitlines()[-1]
    assert states(message, option) and states(message, f"'{value}'")


def test_words_that_are_not_utf8_are_refused():
    with refused("error", repr("--out=\udcff"), error=SystemExit):
        main(["sample", "--prompts", "a.txt", "--out=\udcff"])


def test_the_benchmarks_offered_are_those_that_have_a_layout():
    assert set(benchmark.BENCHMARKS) == set(LAYOUTS)
