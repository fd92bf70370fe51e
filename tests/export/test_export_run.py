"""Any checkpoint of any run becomes a checked bundle, in one process; or nothing is written."""

import argparse
import gc
import json
import re
import runpy
import shutil
import sys
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file

from tdmvid.adapters.layouts import KeyLayout
from tdmvid.backbones.lora_files import LORA_FILE, LoraFiles
from tdmvid.backbones.registry import load_backbone
from tdmvid.cli.export import default_name
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.export import bundle as exporting
from tdmvid.export import check as checking
from tdmvid.export.card import _recipe, _samples
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published, export_run, export_tuned
from tdmvid.roles.rounding import difference
from tdmvid.sampling.shots import noise
from tdmvid.sampling.student import use_student, weights_of
from tdmvid.train import finalize as finishing
from tdmvid.train.trainer import train

PROMPTS = ("a red circle", "a blue square moves left")
SIZE = ClipSize(9, 32, 32)


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A LoRA run of 4 steps with an average and checkpoints after 2 and 4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
        patch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
        return train(
            tiny_run(
                tmp_path_factory.mktemp("run") / "mine",
                "steps=4",
                "ema=0.5",
                "lora.alpha=6",
                "student.lr=0.05",
            )
        )


@pytest.fixture(scope="module")
def tuned(tiny_run, tmp_path_factory):
    """A run that trained whole networks for 2 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
        patch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
        return train(
            tiny_run(
                tmp_path_factory.mktemp("run") / "full",
                "training=full",
                "steps=2",
                "student.lr=5e-3",
            )
        )


@pytest.fixture
def base(tiny_cogvideox):
    return load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), SIZE)


def latents(base, folder, steps=4):
    """As a user: the stock pipeline with what is in the folder, from noise and prompts."""
    z = torch.stack([noise(prompt, 7, base.latent_shape()) for prompt in PROMPTS])
    return base.stock.latents(
        use_student(base, folder), z, base.encode_prompts(list(PROMPTS)), steps=steps
    )


@pytest.mark.parametrize("kind, fuse", [("run", False), ("run", True), ("tuned", False)])
@pytest.mark.slow
def test_the_base_waits_in_host_memory_while_another_is_checked(
    kind, fuse, request, tmp_path, monkeypatch
):
    held, call = [], checking._compare
    monkeypatch.setattr(
        "tdmvid.export.sources.load_backbone",
        lambda *args, **named: held.append(load_backbone(*args, **named)) or held[0],
    )

    def size():
        return sum(p.numel() for p in held[0].network.parameters() if not p.requires_grad)

    sizes = []
    monkeypatch.setattr(
        checking, "_compare", lambda *arguments: sizes.append(size()) or call(*arguments)
    )
    export_run(
        tmp_path / "out", request.getfixturevalue(kind), ExportRequest(prompts=PROMPTS, fuse=fuse)
    )
    assert sizes == [0] and size() > 1000


@pytest.mark.parametrize(
    "words, most", [(("objective.step_set=[1,2,4]",), 1), (("training=full",), 2)]
)
@pytest.mark.slow
def test_a_base_that_was_checked_is_gone_before_the_next_comes_and_the_run_s_own_returns(
    tiny_run, tmp_path, monkeypatch, words, most
):
    """A pipeline is in a cycle: without a collection, three of them and the run's own would be on
    the device. Of a whole network one is the copy that is written.
    """
    networks, counts, kind = [], [], CogVideoXTransformer3DModel

    def alive():
        return sum(network() is not None for network in networks)

    load, write = kind.from_pretrained.__func__, finishing.write_gallery

    def counted(cls, *args, **named):
        network = load(cls, *args, **named)
        found = network[0] if isinstance(network, tuple) else network
        networks.append(weakref.ref(found))
        counts.append(alive())
        return network

    def finish(run):
        monkeypatch.setattr(kind, "from_pretrained", classmethod(counted))
        finishing.finalize(run)

    monkeypatch.setattr("tdmvid.train.trainer.finalize", finish)
    monkeypatch.setattr(
        finishing,
        "write_gallery",
        lambda *columns, **named: counts.append(alive()) or write(*columns, **named),
    )
    gc.disable()
    try:
        train(tiny_run(tmp_path / "run", "steps=1", *words))
    finally:
        gc.enable()
    assert len(counts) >= 3 and max(counts) == most and counts[-1] == 0


@pytest.mark.slow
def test_average_and_raw_weights_of_any_checkpoint_come_out(run, tmp_path):
    found = {}
    for name, settings in {
        "newest": {},
        "ema": {"weights": "ema"},
        "raw": {"weights": "raw"},
        "early": {"checkpoint": run / "checkpoints" / "step_000002"},
    }.items():
        assert (
            export_run(tmp_path / name, run, ExportRequest(prompts=PROMPTS), **settings)["error"]
            < 1e-5
        )
        found[name] = load_file(tmp_path / name / LORA_FILE)
    for name, step, file in (("ema", 4, "average"), ("raw", 4, "weights"), ("early", 2, "average")):
        trained = load_file(
            run / "checkpoints" / f"step_{step:06d}" / "student" / f"{file}.safetensors"
        )
        assert len(trained) > 10
        assert all(
            torch.equal(found[name][f"transformer.{key.replace('.default', '')}"], value)
            for key, value in trained.items()
        )
    assert all(torch.equal(found["newest"][key], value) for key, value in found["ema"].items())
    assert any(not torch.equal(found["raw"][key], value) for key, value in found["ema"].items())


@pytest.mark.parametrize("dtype, error", [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_a_bundle_has_every_format_in_its_dtype_and_says_so(run, base, tmp_path, dtype, error):
    facts = export_run(
        tmp_path / "out", run, ExportRequest(("comfyui", "diffusers"), dtype, prompts=PROMPTS)
    )
    assert (
        facts["dtype"] == dtype
        and 0 < facts["error"] < error
        and 0 < facts["errors"]["comfyui"] < error
    )
    path = facts["formats"]["comfyui"]
    assert path == "comfyui/tiny_4steps.safetensors" and path in facts["files"]
    for file in (LORA_FILE, path):
        tensors = load_file(tmp_path / "out" / file)
        assert {t.dtype for key, t in tensors.items() if "lora_" in key} == {getattr(torch, dtype)}
    assert "diffusion_model.blocks.1.attn_out.lora_B.weight" in tensors and not any(
        "transformer" in key for key in tensors
    )
    with safe_open(tmp_path / "out" / LORA_FILE, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["transformer.lora_alpha"] == 6


@pytest.fixture
def scored(run):
    """The folder of a run that has exported its student, and scored it by a program of its own and
    by VBench.
    """
    export_run(run / "lora", run, ExportRequest(prompts=PROMPTS))
    own = {"weights": weights_of(run / "lora")}
    (run / "scores.json").write_text(
        json.dumps(
            own
            | {
                "protocol": "8 prompts",
                "columns": [{"key": "all", "label": "all right", "unit": "%"}],
                "samplers": [{"name": "student", "nfe": 4, "metrics": {"all": {"value": 0.957}}}],
            }
        )
    )
    (run / "vbench").mkdir()
    (run / "vbench" / "results.json").write_text(json.dumps(own))
    (run / "vbench" / "results.md").write_text(
        "# VBench: mine\n\n| temporal_flickering | 97.50 [97.20, 97.70] |\n"
    )
    yield run
    (run / "scores.json").unlink()
    shutil.rmtree(run / "vbench")
    shutil.rmtree(run / "lora")


@pytest.mark.slow
def test_the_card_tells_what_a_user_and_a_hub_need(scored, base, tmp_path):
    licence = base.folder / "README.md"
    licence.write_text(
        "---\nlicense: other\nlicense_name: cogvideox\nlicense_link:"
        " https://example.org/LICENSE\n---\n# base\n"
    )
    try:
        export_run(tmp_path / "out", scored, ExportRequest(("comfyui",), prompts=PROMPTS))
    finally:
        licence.unlink()
    card = (tmp_path / "out" / "README.md").read_text()
    head = re.match(r"---\n(.*?)\n---\n", card, re.S)[1].splitlines()
    assert {
        "license: other",
        "license_name: cogvideox",
        "library_name: diffusers",
        "pipeline_tag: text-to-video",
        "- lora",
    } <= set(head)
    for text in (
        "[999, 749, 499, 249]",
        "| guidance scale | 1.0 (off) |",
        "rank 2, alpha 6",
        "9 x 32 x 32, 8 fps",
        "| student | 4 | 95.7 % |",
        "8 prompts",
        "### VBench: mine",
        "| temporal_flickering | 97.50 [97.20, 97.70] |",
        "applies: cogvideox (https://example.org/LICENSE)",
        '"lr": 0.05',
        f"[{PROMPTS[1]}](samples/1.mp4)",
        "Iteration 4.",
        "comfyui/tiny_4steps.safetensors",
    ):
        assert text in card
    assert "cache" not in card and (tmp_path / "out" / "samples" / "1.mp4").stat().st_size > 0


def test_a_prompt_on_a_card_is_text_and_never_markup():
    prompt = "a](javascript:x) <img src=x>\n\n# b | c"
    (_, listed) = _samples(["samples/0.mp4"], (prompt,))
    assert listed == r"* [a\](javascript:x) \<img src=x\> \# b \| c](samples/0.mp4)"


def test_a_card_s_recipe_names_no_folder_of_the_machine():
    text = "".join(
        _recipe(
            {
                "out": "/home/ann/run",
                "init": "/home/ann/first/lora",
                "evaluate": {"config": "/home/ann/eval.json"},
                "prompts": {"path": "/home/ann/p.txt", "limit": 3},
            }
        )
    )
    assert '"first/lora"' in text and '"limit": 3' in text and "ann" not in text


@pytest.mark.slow
def test_the_card_s_python_runs_and_gives_the_student(run, base, tmp_path):
    out = tmp_path / "out"
    export_run(out, run, ExportRequest(prompts=PROMPTS))
    code, short = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    expected = latents(base, out)
    for source in (code.split("pipe.scheduler")[0], short):
        names = {}
        exec(source.replace("path/to/this/folder", str(out)), names)
        pipeline = names["pipe"]
        pipeline.scheduler = load_pipeline(out).scheduler
        pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal = 8, 4
        z = torch.stack([noise(prompt, 7, base.latent_shape()) for prompt in PROMPTS])
        torch.testing.assert_close(
            base.stock.latents(pipeline, z, base.encode_prompts(list(PROMPTS)), steps=4), expected
        )
    exec(code.replace("path/to/this/folder", str(out)).rpartition("\n")[0].rpartition("\n")[0], {})


@pytest.mark.slow
def test_a_fused_network_is_base_and_lora(run, base, tmp_path):
    export_run(tmp_path / "lora", run, ExportRequest(prompts=PROMPTS))
    facts = export_run(tmp_path / "fused", run, ExportRequest(fuse=True, prompts=PROMPTS))
    fused = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "fused")
    assert not any("lora" in name for name in fused.state_dict()) and facts["error"] < 1e-5
    found = latents(base, tmp_path / "fused")
    assert difference(found, latents(base, tmp_path / "lora")) < 1e-4
    assert difference(found, latents(base, None)) > 1e-3
    assert load_pipeline(tmp_path / "fused").scheduler.config.timestep_spacing == "trailing"


def test_a_network_keeps_its_precision_or_has_the_one_that_is_asked_for(tuned, tmp_path):
    trained = load_file(tuned / "checkpoints" / "step_000002" / "student" / "weights.safetensors")
    for dtype in ("float32", "float16"):
        export_run(tmp_path / dtype, tuned, ExportRequest(dtype=dtype, prompts=PROMPTS))
        written = load_file(tmp_path / dtype / "diffusion_pytorch_model.safetensors")
        assert all(
            torch.equal(written[name], tensor.to(getattr(torch, dtype)))
            for name, tensor in trained.items()
        )


@pytest.mark.slow
def test_a_full_fine_tune_comes_out_whole_or_as_a_lora_with_its_error(tuned, base, tmp_path):
    export_run(tmp_path / "whole", tuned, ExportRequest(prompts=PROMPTS))
    errors = {}
    for rank in (2, 32):
        facts = export_run(
            tmp_path / f"rank{rank}", tuned, ExportRequest(("comfyui",), rank=rank, prompts=PROMPTS)
        )
        assert facts["rank"] == facts["alpha"] == rank and facts["errors"]["comfyui"] < 1e-5
        errors[rank] = facts["extraction"]
        found, whole = (latents(base, tmp_path / name) for name in (f"rank{rank}", "whole"))
        errors[rank]["seen"] = difference(found, whole)
    assert errors[32]["error"] < errors[2]["error"] < 1 and errors[32]["seen"] < errors[2]["seen"]
    assert (
        max(errors[32]["layers"].values()) < 1e-3 and "norm_final.weight" in errors[32]["left_out"]
    )  # every layer is of 32 at least one way


@pytest.mark.slow
def test_a_published_lora_becomes_a_bundle_with_its_own_grid_and_scale(run, base, tmp_path):
    export_run(tmp_path / "mine", run, ExportRequest(prompts=PROMPTS))
    tensors = load_file(tmp_path / "mine" / LORA_FILE)
    torch.save(
        {key: value / 3 if "lora_B" in key else value for key, value in tensors.items()},
        tmp_path / "theirs.pt",
    )  # to be loaded at 9
    facts = export_published(
        tmp_path / "theirs",
        tmp_path / "theirs.pt",
        base,
        uniform(4, base.process),
        ExportRequest(prompts=PROMPTS),
        scale=9.0,
    )
    assert facts["alpha"] == 18 and facts["timesteps"] == [999, 749, 499, 249]
    assert facts["original"]["error"] < 1e-5
    again = load_backbone(base.config, SIZE)
    found = latents(again, tmp_path / "theirs")
    assert difference(found, latents(again, tmp_path / "mine")) < 1e-4


@pytest.mark.slow
def test_a_fine_tuned_folder_becomes_a_lora(tuned, base, tmp_path):
    export_run(tmp_path / "whole", tuned, ExportRequest(prompts=PROMPTS))
    facts = export_tuned(
        tmp_path / "lora",
        tmp_path / "whole",
        base,
        uniform(4, base.process),
        ExportRequest(rank=2, prompts=PROMPTS),
    )
    same = export_run(tmp_path / "run", tuned, ExportRequest(rank=2, prompts=PROMPTS))
    assert facts["extraction"]["error"] == pytest.approx(same["extraction"]["error"], rel=1e-3)


@pytest.mark.slow
def test_a_run_whose_export_fails_its_check_leaves_all_else_and_a_wider_tolerance_writes_it(
    tiny_run, tmp_path, monkeypatch
):
    save = LoraFiles.save
    monkeypatch.setattr(
        LoraFiles,
        "save",
        lambda files, folder, layers, config: save(
            files, folder, {key: tensor * 1.01 for key, tensor in layers.items()}, config
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
    with refused(f"network='{tmp_path}'", "config.json"):
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
            lambda files, folder, layers, config: save(
                files, folder, {key: tensor * 1.01 for key, tensor in layers.items()}, config
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
        ({"checkpoint": "none"}, {}, ("none", "step_")),
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
    out.rename(tmp_path / ".out.old" / "out")  # where a kill between the two renames leaves it
    (tmp_path / ".out.part" / "out").mkdir(parents=True)
    with refused("'gguf'"):
        export_run(out, run, ExportRequest(("gguf",), prompts=PROMPTS))
    with refused("tolerance", error=RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmvid.export.check.TOLERANCE", {"float32": 0.0})
        export_run(out, run, ExportRequest(prompts=PROMPTS))
    assert (out / "export.json").read_bytes() == first and [
        path.name for path in tmp_path.iterdir()
    ] == ["out"]


@pytest.mark.slow
def test_a_card_has_the_scores_of_these_very_weights_alone(scored, tmp_path):
    def cards(**choices):
        out = {}
        for name, choice in choices.items():
            export_run(tmp_path / name, scored, ExportRequest(prompts=PROMPTS), **choice)
            out[name] = [
                part in (tmp_path / name / "README.md").read_text() for part in ("95.7 %", "97.50")
            ]
        return out

    first = sorted((scored / "checkpoints").glob("step_*"))[0]
    assert cards(scored={}, earlier={"checkpoint": first}, raw={"weights": "raw"}) == {
        "scored": [True, True],
        "earlier": [False, False],
        "raw": [False, False],
    }
    (scored / "vbench" / "results.json").write_text(
        json.dumps({"weights": "of a LoRA that lay there before"})
    )
    assert cards(other={}) == {"other": [True, False]}


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


@pytest.mark.slow
def test_the_program_exports_and_says_how_well(run, tiny_cogvideox, tmp_path, monkeypatch, capsys):
    def program(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_lora.py", *map(str, arguments)])
        runpy.run_path("launch/export_lora.py", run_name="__main__")

    program(
        "--run",
        run,
        "--format",
        "diffusers, comfyui",
        "--out",
        tmp_path / "a",
        "--prompt",
        PROMPTS[0],
    )
    said = capsys.readouterr().out
    assert re.search(
        r"relative difference \d\.\de-0[6-9] of at most 1e-05 in a stock"
        r" pipeline\n.*comfyui/.*: \d",
        said,
    )
    common = [
        "--model",
        tiny_cogvideox("sincos"),
        "--size",
        "9x32x32",
        "--prompt",
        PROMPTS[0],
        "--out",
        tmp_path / "b",
    ]
    program("--published", tmp_path / "a" / LORA_FILE, "--timesteps", "999,856,665,399", *common)
    assert (
        json.loads((tmp_path / "b" / "export.json").read_text())["scheduler"]["name"]
        == "TrajectoryScheduler"
    )
    for wrong, *facts in (
        (["--timesteps", "x"], "timesteps='x'"),
        ([], "timesteps", "steps"),
        (["--steps", "4", "--format", "gguf"], "'gguf'"),
    ):
        with refused("error", *facts, error=SystemExit):
            program("--published", tmp_path / "a" / LORA_FILE, *wrong, *common)
    with pytest.raises(SystemExit):
        program("--run", run, "--scale", "0.5")
    assert "--scale has no effect with --run: leave it out" in capsys.readouterr().err


def test_each_kind_of_export_has_a_folder_of_its_own():
    def name(**given):
        options = {"fuse": False, "rank": 0, "weights": "", "checkpoint": None} | given
        return default_name(argparse.Namespace(**options))

    assert [
        name(),
        name(fuse=True),
        name(rank=64),
        name(weights="raw", checkpoint=Path("c/step_000500")),
    ] == [
        "export",
        "export_fused",
        "export_rank64",
        "export_raw_step_000500",
    ]


@pytest.mark.slow
def test_a_run_over_several_k_has_a_checked_lora_of_each(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("tdmvid.train.trainer.finalize", lambda run: None)
    monkeypatch.setattr("tdmvid.train.trainer.write_samples", lambda run, step: None)
    unify = train(
        tiny_run(
            tmp_path / "run",
            "steps=4",
            "student.lr=0.05",
            "grid.steps=2",
            "objective.step_set=[1,2]",
        )
    )
    export_run(tmp_path / "out", unify, ExportRequest(("comfyui",), prompts=PROMPTS))
    shifts = []
    for name, steps in (("out", 2), ("out_1steps", 1)):
        facts = json.loads((tmp_path / name / "export.json").read_text())
        assert (
            facts["steps"] == len(facts["timesteps"]) == steps
            and max(facts["error"], facts["errors"]["comfyui"]) < 1e-5
        )
        shifts.append(
            load_file(tmp_path / name / facts["formats"]["comfyui"])[
                "diffusion_model.time_embedding_linear_2.diff_b"
            ]
        )
    assert difference(*shifts) > 1e-2  # each K has its own constant
    before = {
        path: path.read_bytes() for path in sorted(tmp_path.glob("out*/**/*")) if path.is_file()
    }
    check, calls = exporting.check_lora, []

    def second_fails(folder, student, tolerance):
        calls.append(folder)
        if len(calls) == 1:
            return check(folder, student, tolerance)
        return checking._compare(student.latents + 1, student, tolerance)

    monkeypatch.setattr(exporting, "check_lora", second_fails)
    with refused("tolerance", error=RuntimeError):
        export_run(tmp_path / "out", unify, ExportRequest(dtype="float16", prompts=PROMPTS))
    assert (
        len(calls) == 2
        and {
            path: path.read_bytes() for path in sorted(tmp_path.glob("out*/**/*")) if path.is_file()
        }
        == before
    )  # of neither K
    assert not list(tmp_path.glob(".out*"))
    monkeypatch.undo()
    with refused("fuse"):
        export_run(tmp_path / "fused", unify, ExportRequest(fuse=True, prompts=PROMPTS))
