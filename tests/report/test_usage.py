"""What a reader does next: load the student, run the commands again, open the files."""

import importlib
import re
import shlex
from html import unescape

import pytest
from run_folder import Page, write

from tdmvid.cli.leave import Parser
from tdmvid.report.page import write_report


def codes(page):
    """Every block of code that can be copied."""
    return [unescape(text) for text in re.findall(r"<pre.*?><code>(.*?)</code>", page, re.S)]


def test_checks_and_the_exported_lora_say_pass_or_fail(page):
    assert re.findall(r'class="mark (\w+)"', page) == ["pass", "fail", "pass"]
    text = Page(page).text
    assert "relative difference 2e-6 , at most 1e-4 allowed" in text


def test_an_export_beyond_its_tolerance_fails(tmp_path):
    write(tmp_path / "lora/export.json", {"error": 2e-4, "tolerance": 1e-4, "files": []})
    assert re.findall(r'class="mark (\w+)"', write_report(tmp_path).read_text()) == ["fail"]


def test_a_command_can_be_copied_as_it_was_typed(page):
    assert codes(page)[-2] == "python a.py --x '<y>'"


def test_the_code_of_the_card_is_shown_with_the_folder_filled_in(page, tmp_path):
    stock, ours = codes(page)[:2]
    assert stock.endswith(f'pipe.load_lora_weights("{tmp_path}/lora")')
    assert ours.endswith(f'load_pipeline("{tmp_path}/lora")') and "Use this LoRA" in page


def test_the_code_of_the_card_is_shown_with_the_base_filled_in(tmp_path):
    export = {"error": 0.0, "tolerance": 1e-4, "files": [], "model": {"path": "/data/my base"}}
    write(tmp_path / "lora/export.json", export)
    write(tmp_path / "lora/README.md", b'```python\npipe = load("path/to/my base")\n```\n')
    assert codes(write_report(tmp_path).read_text())[0] == 'pipe = load("/data/my base")'


def test_a_whole_network_is_shown_like_a_lora(tmp_path):
    export = {"error": 0.0, "tolerance": 1e-4, "files": ["model.safetensors"]}
    write(tmp_path / "student/export.json", export)
    write(tmp_path / "student/model.safetensors", b"")
    page = write_report(tmp_path).read_text()
    assert "Use this student" in page and 'href="student/model.safetensors"' in page


DONE = {"error": 0.0, "tolerance": 1e-4, "files": []}


def test_links_lead_to_files_that_are_there(page, tmp_path):
    hrefs = [attrs["href"] for tag, attrs in Page(page).elements if tag == "a"]
    assert {"lora/", "lora/a.safetensors", "metrics.jsonl", "config.json", "gallery/"} <= {*hrefs}
    assert all((tmp_path / href).exists() for href in hrefs if not href.endswith("results.html"))
    assert "guard.json" not in hrefs


def test_a_run_can_be_trained_scored_sampled_and_exported_again(tmp_path):
    """The commands are parsed by the parsers of their programs."""
    run = tmp_path / "my runs"
    config = {"video": {"frames": 9}, "training": "lora"}
    write(run / "config.json", config)
    write(run / "lora/export.json", DONE)
    train = "tdmvid train --config shapes_4nfe"
    write(run / "commands.json", {"commands": [{"what": "train", "command": train}]})
    shown = codes(write_report(run).read_text())[:-1]
    assert shown == [
        train,
        f"tdmvid score vbench --lora '{run}/lora'",
        f"tdmvid sample --lora '{run}/lora' --prompts prompts.txt --out '{run}/videos'",
        f"tdmvid playground --lora '{run}/lora'",
        f"tdmvid export --run '{run}'",
    ]
    for command in shown:
        assert_parses(command)


def test_a_run_without_a_student_has_no_commands_for_one(tmp_path):
    write(tmp_path / "config.json", {"video": {"frames": 9}, "training": "lora"})
    page = write_report(tmp_path).read_text()
    assert not [text for text in codes(page) if "/lora" in text] and "not scored" not in page
    (tmp_path / "checkpoints" / "step_000002").mkdir(parents=True)
    assert f"tdmvid export --run {tmp_path}" in codes(write_report(tmp_path).read_text())


@pytest.mark.parametrize("teacher", ["shapes", "shapes_i2v"])
def test_a_student_of_an_embedded_teacher_is_scored_with_its_own_judge(tmp_path, teacher):
    write(tmp_path / "config.json", {"video": {"frames": 9}, "model": {"path": teacher}})
    write(tmp_path / "lora/export.json", DONE)
    (score,) = [text for text in codes(write_report(tmp_path).read_text()) if " score " in text]
    assert score == f"tdmvid score shapes --run {tmp_path}"
    assert_parses(score)


def test_a_run_that_starts_from_images_is_sampled_with_images(tmp_path):
    write(tmp_path / "config.json", {"video": {"frames": 9}})
    write(tmp_path / "lora/export.json", DONE)
    columns = [{"name": "first frame", "nfe": None, "videos": []}]
    write(tmp_path / "gallery/gallery.json", {"prompts": ["a lake"], "columns": columns})
    (sample,) = [text for text in codes(write_report(tmp_path).read_text()) if " sample " in text]
    assert "--images stills" in sample
    assert_parses(sample)


def assert_parses(command):
    """Check that a command's own parser takes its options."""
    _, name, *options = shlex.split(command)
    parser = Parser()
    importlib.import_module(f"tdmvid.cli.{name}").add_arguments(parser)
    parser.parse_args(options)
