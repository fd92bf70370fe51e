"""What cannot be exported, or would not give the student's samples, leaves no files."""

import shutil

import pytest
from exported import PROMPTS
from refusals import refused

from tdmvid.adapters.layouts import KeyLayout
from tdmvid.backbones.lora_files import LORA_FILE, LoraFiles
from tdmvid.cli.main import main
from tdmvid.config import load_config
from tdmvid.data.checkpoints import list_steps
from tdmvid.diffusion.grid import uniform
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_run, export_tuned
from tdmvid.export.trained import _find_checkpoint
from tdmvid.guard.record import GuardCheck, GuardRecord
from tdmvid.train.trainer import train


@pytest.mark.slow
def test_a_run_whose_export_fails_its_check_leaves_all_else_and_a_wider_tolerance_writes_it(
    tiny_run, tmp_path, monkeypatch
):
    save = LoraFiles.save
    monkeypatch.setattr(
        LoraFiles,
        "save",
        lambda files, folder, layers, *rest: save(
            files, folder, {key: tensor * 1.01 for key, tensor in layers.items()}, *rest
        ),
    )
    with refused("tdmvid export", "--tolerance", error=RuntimeError):
        train(tiny_run(tmp_path / "run", "steps=1", "student.lr=0.05"))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000 and (
        tmp_path / "run" / "gallery" / "comparison.png"
    ).is_file()
    assert not (tmp_path / "run" / "lora").exists()
    facts = export_run(
        tmp_path / "out", tmp_path / "run", ExportRequest(prompts=PROMPTS, tolerance=0.5)
    )
    assert (
        facts["tolerance"] == 0.5 > facts["error"] > 1e-5
        and (tmp_path / "out" / LORA_FILE).is_file()
    )
    with refused("tolerance=-1"):
        ExportRequest(tolerance=-1)


def test_a_folder_without_a_network_is_called_so(base, tmp_path):
    with refused(f"--network '{tmp_path}'", "config.json"):
        export_tuned(
            tmp_path / "out",
            tmp_path,
            base,
            uniform(4, base.process),
            ExportRequest(prompts=PROMPTS),
        )


@pytest.mark.parametrize("spoiled", ["diffusers", "comfyui"])
def test_an_export_that_differs_leaves_nothing(run, tmp_path, monkeypatch, spoiled):
    if spoiled == "diffusers":
        save = LoraFiles.save
        monkeypatch.setattr(
            LoraFiles,
            "save",
            lambda files, folder, layers, *rest: save(
                files, folder, {key: tensor * 1.01 for key, tensor in layers.items()}, *rest
            ),
        )
    else:
        write = KeyLayout.write
        monkeypatch.setattr(
            KeyLayout,
            "write",
            lambda layout, state, alpha, model: write(layout, state, 2 * alpha, model),
        )
    with refused("tolerance", error=RuntimeError):
        export_run(tmp_path / "out", run, ExportRequest(("comfyui",), prompts=PROMPTS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings, options, facts",
    [
        ({"checkpoint": "none"}, {}, ("none", "checkpoints", "--run")),
        ({}, {"formats": ("gguf",)}, ("'gguf'", "diffusers, comfyui, kohya")),
        ({}, {"rank": 4}, ("rank",)),
    ],
)
def test_what_cannot_be_exported_is_refused(run, tmp_path, monkeypatch, settings, options, facts):
    monkeypatch.chdir(tmp_path)
    settings = {key: tmp_path / value for key, value in settings.items()}
    with refused(*facts):
        export_run(tmp_path / "out", run, ExportRequest(**options, prompts=PROMPTS), **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    checkpoint = next((other / "checkpoints").glob("step_*"))
    with refused(f"checkpoint='{checkpoint}'", run / "checkpoints", "--run"):
        export_run(tmp_path / "out", run, ExportRequest(prompts=PROMPTS), checkpoint=checkpoint)


def test_the_best_student_is_chosen_among_the_checkpoints_that_exist(run, tmp_path):
    """A run that is killed has compared a student whose checkpoint was not written."""
    killed = shutil.copytree(run, tmp_path / "killed")
    last = list_steps(killed / "checkpoints")[-1]
    steps = (last, last + 100)
    GuardRecord(tuple(GuardCheck(step, {}, {}, 1 / step, ()) for step in steps)).write(killed)
    config = load_config(killed / "config.json", ["export.select=best", "log.sample_every=1"])
    assert _find_checkpoint(killed, config, None).name == f"step_{last:06d}"


def test_a_folder_that_is_no_run_is_called_so(tmp_path):
    with refused(tmp_path, "config.json"):
        export_run(tmp_path / "out", tmp_path)


def test_an_export_replaces_an_export_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with refused(out, "export.json", "--out"):
        export_run(out, run, ExportRequest(prompts=PROMPTS))
    assert (out / "thesis.txt").read_text() == "years of work" and len(
        list(tmp_path.iterdir())
    ) == 1
    (out / "thesis.txt").unlink()
    export_run(out, run, ExportRequest(prompts=PROMPTS))
    first = (out / "export.json").read_bytes()
    (tmp_path / ".out.old").mkdir()
    out.rename(tmp_path / ".out.old" / "out")  # the state after a kill between the two renames
    (tmp_path / ".out.part" / "out").mkdir(parents=True)
    with refused("'gguf'"):
        export_run(out, run, ExportRequest(("gguf",), prompts=PROMPTS))
    with refused("tolerance", error=RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.export.check.TOLERANCE", {"float32": 0.0})
        export_run(out, run, ExportRequest(prompts=PROMPTS))
    assert (out / "export.json").read_bytes() == first and [
        path.name for path in tmp_path.iterdir()
    ] == ["out"]


def test_a_whole_network_has_nothing_to_fuse(tuned, tmp_path):
    with refused("fuse has no effect"):
        export_run(tmp_path / "out", tuned, ExportRequest(prompts=PROMPTS, fuse=True))
    assert not (tmp_path / "out").exists()


def test_damaged_checkpoints_and_missing_averages_are_refused(tuned, tmp_path):
    with refused("ema=0"):
        export_run(tmp_path / "out", tuned, ExportRequest(prompts=PROMPTS), weights="ema")
    checkpoint = tuned / "checkpoints" / "step_000002"
    extra = checkpoint / "student" / "weights.safetensors"
    whole = extra.read_bytes()
    extra.write_bytes(whole[:-1])
    try:
        with refused("step_000002", "student/weights.safetensors"):
            export_run(
                tmp_path / "out", tuned, ExportRequest(prompts=PROMPTS), checkpoint=checkpoint
            )
        with refused(tuned):
            export_run(tmp_path / "out", tuned, ExportRequest(prompts=PROMPTS))
    finally:
        extra.write_bytes(whole)


def test_what_an_export_would_refuse_at_its_end_is_refused_before_the_base_is_loaded(tmp_path):
    words = ["export", "--published", "x.safetensors", "--model", "nowhere", "--size", "1x8x8"]
    words += ["--steps", "4"]
    with refused("--prompt is missing", error=SystemExit):
        main([*words, "--out", str(tmp_path / "out")])
    asked = [*words, "--prompt", "a", "--out", str(tmp_path / "out")]
    with refused("--published x.safetensors", "no such file", error=SystemExit):
        main(asked)
    with refused("format 'gguf'", "comfyui", error=SystemExit):
        main([*asked, "--format", "gguf"])
    of_network = ["--network", "nothing", *asked[3:]]
    with refused("--network 'nothing'", "config.json", error=SystemExit):
        main(["export", *of_network])
    (tmp_path / "notes.txt").touch()
    with refused(tmp_path, "is not an export", error=SystemExit):
        main([*words, "--prompt", "a", "--out", str(tmp_path)])
