"""What the documentation tells a reader to type is what the programs take."""

import ast
import json
import re

import documented
import pytest
from commands_page import NO_HELP, commands_page
from documented import blocks, commands
from settings_page import field_texts, settings_page

from tdmvid.cli.main import COMMANDS, main
from tdmvid.config import RunConfig, from_dict

COLLECTED = commands()
GPU = re.compile(r"GPU|CUDA|SLURM", re.I)


def test_the_pages_are_read():
    programs = {command.words[0] for command in COLLECTED}
    assert programs >= documented.PROGRAMS.keys() - {"pytest"}
    assert len({command.block.page for command in COLLECTED}) > 10


@pytest.mark.parametrize(
    "words",
    [
        ("tdmvid", "train", "--config", "shapes_4nfe", "--sett", "steps=2"),
        ("tdmvid", "train", "--config", "shapes_4nfe", "--set", "student.lrr=2"),
        ("tdmvid", "plan", "--config", "cogvideox3b_4nfe"),
        ("python", "launch/train.py", "--config", "configs/shapes.json"),
        ("torchrun", "--nproc", "8", "-m", "tdmvid", "trian"),
        ("sbatch", "launch/slurm/two_nodes.sbatch", "cogvideox2b_4nfe"),
        ("make", "demos"),
        ("pip", "install", ".[images]"),
        ("tdmvd", "train"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_would_be_found(words, capsys):
    block = documented.Block("page", 1, "", "", "")
    with pytest.raises((SystemExit, ValueError, AssertionError, ModuleNotFoundError)):
        documented.parse(documented.Command(words, block))


@pytest.mark.parametrize("command", COLLECTED, ids=str)
def test_a_command_of_the_documentation_is_one_that_the_program_takes(command):
    """The section of a command that trains a model other than the embedded one speaks of GPUs."""
    run = getattr(documented.parse(command), "run_config", None)
    cheap = {"plan", "--plan", "embed"} & set(command.words)
    if run is not None and run.model.path not in documented.EMBEDDED and not cheap:
        assert GPU.search(command.block.section), f"{command}: say that it needs a GPU"


@pytest.mark.parametrize("command", documented.usages(), ids=str)
def test_a_command_of_a_help_text_is_one_that_the_program_takes(command):
    documented.parse(command)


@pytest.mark.parametrize("command", documented.mentions(), ids=str)
def test_a_command_in_the_text_has_the_options_that_it_is_said_to_have(command):
    documented.check_mention(command)


def test_a_wrong_option_in_the_text_would_be_found():
    block = documented.Block("page", 1, "", "", "")
    for words in (
        ("tdmvid", "score", "shapes", "--prompt", "a"),
        ("python", "-m", "benchmarks.race", "--repeats", "2"),
        ("python", "eval/latency.py", "--seeds", "2"),
    ):
        with pytest.raises(AssertionError, match=words[-2]):
            documented.check_mention(documented.Command(words, block))


def test_prompts_of_the_documentation_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generated = re.compile(r"(videos|images|shapes)(:\d+)*$")
    ran = 0
    for command in COLLECTED:
        if command.words[:2] == ("tdmvid", "prompts") and generated.match(command.words[2]):
            main(command.words[1:])
            ran += 1
    assert ran and all(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("block", [block for block in blocks() if block.label == "json"])
def test_settings_of_the_documentation_are_accepted(block):
    text = block.text.strip()
    data = json.loads(text if text.startswith("{") else f"{{{text}}}")
    from_dict(RunConfig, data)


@pytest.mark.parametrize("block", [block for block in blocks() if block.label == "python"])
def test_code_of_the_documentation_is_python(block):
    ast.parse(block.text)


def test_every_setting_is_in_the_reference():
    page = settings_page()
    for name in ("name", "model.dtype", "objective.cfg", "rewards[i].strength", "student.lr"):
        assert f"#### `{name}` {{ #" in page
    assert "0.0005" in page.split("#fake.lr }")[1].split("####")[0]
    anchors = re.findall(r"\{ #(\S+) \}", page)
    assert len(anchors) == len(set(anchors)) > 150


def test_a_setting_is_described_by_the_docstring_below_its_field():
    from tdmvid.config import DMD2Settings, OptimConfig

    assert "norm" in field_texts(OptimConfig)["clip"]
    assert "noised to tau" in field_texts(DMD2Settings)["match"]


def test_every_command_is_in_the_reference():
    page = commands_page()
    for name in COMMANDS:
        assert f"## `tdmvid {name}` {{ #tdmvid-{name} }}" in page
    assert "### `tdmvid score vbench`" in page


def test_every_option_has_a_help_text():
    assert NO_HELP not in commands_page()
