"""Any checkpoint of any run becomes a checked bundle, in one process, or nothing is written."""

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
from exported import PROMPTS, SIZE, latents
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdmvid.adapters.bundle import read_facts
from tdmvid.adapters.teacher import load_teacher
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.backbones.registry import load_backbone
from tdmvid.cli.export import _others, default_name
from tdmvid.cli.main import main
from tdmvid.diffusion.grid import uniform
from tdmvid.export import bundle as exporting
from tdmvid.export import check as checking
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published, export_run, export_tuned
from tdmvid.roles.rounding import difference
from tdmvid.train import finalize as finishing
from tdmvid.train.trainer import train


@pytest.mark.parametrize("kind, fuse", [("run", False), ("run", True), ("tuned", False)])
@pytest.mark.slow
def test_the_base_waits_in_host_memory_while_another_is_checked(
    kind, fuse, request, tmp_path, monkeypatch
):
    held, call = [], checking._compare
    monkeypatch.setattr(
        "tdmvid.export.sources.load_teacher",
        lambda *args, **named: held.append(load_teacher(*args, **named)) or held[0],
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
    """Pipelines contain reference cycles.

    Without a collection, three of them and the run's own would be on the device. For a whole
    network, one of them is the copy that is written.
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
    )  # every layer has 32 inputs or outputs


@pytest.mark.slow
def test_a_published_lora_becomes_a_bundle_with_its_own_grid_and_scale(run, base, tmp_path):
    export_run(tmp_path / "mine", run, ExportRequest(prompts=PROMPTS))
    tensors = load_file(tmp_path / "mine" / LORA_FILE)
    torch.save(
        {key: value / 3 if "lora_B" in key else value for key, value in tensors.items()},
        tmp_path / "theirs.pt",
    )  # its authors recommend scale 9
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
    weights = tmp_path / "whole" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    lost = tensors.popitem()[0]
    save_file(tensors, weights, metadata={"format": "pt"})
    request = ExportRequest(rank=2, prompts=PROMPTS)
    with refused(tmp_path / "whole", lost):
        export_tuned(tmp_path / "b", tmp_path / "whole", base, uniform(4, base.process), request)
    with refused(tmp_path / "whole", lost):
        load_pipeline(tmp_path / "whole")


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
    published = Path(shutil.copy(tmp_path / "a" / LORA_FILE, tmp_path))  # without its export.json
    program("--published", published, "--timesteps", "999,856,665,399", *common)
    assert (
        json.loads((tmp_path / "b" / "export.json").read_text())["scheduler"]["name"]
        == "TrajectoryScheduler"
    )
    for wrong, *facts in (
        (["--timesteps", "x"], "--timesteps 'x'"),
        ([], "timesteps", "steps"),
        (["--steps", "4", "--format", "gguf"], "'gguf'"),
    ):
        with refused("error", *facts, error=SystemExit):
            program("--published", published, *wrong, *common)


@pytest.mark.parametrize(
    "words, facts",
    [
        (["--run", "x", "--scale", "1"], ["--scale=1.0", "--run"]),
        (["--run", "x", "--steps", "4"], ["--steps=4", "--run"]),
        (["--run", "x", "--pipeline", "y"], ["--pipeline='y'", "--run"]),
        (["--run", "x", "--variant", "y"], ["--variant='y'", "--run"]),
        (["--published", "x", "--rank", "0"], ["--rank=0", "--published"]),
        (["--network", "x", "--fuse"], ["--fuse", "--network"]),
        (["--run", "x", "--public"], ["--public", "--push"]),
        (
            [
                "--published",
                "x",
                "--out",
                "y",
                "--model",
                "z",
                "--size",
                "1x8x8",
                "--steps",
                "4",
                "--fps",
                "8",
            ],
            ["--fps=8", "images"],
        ),
    ],
    ids=lambda value: value[-1] if value else "",
)
def test_an_option_of_another_source_is_refused(words, facts):
    with refused("error", *facts, error=SystemExit):
        main(["export", *words])


def test_each_kind_of_export_has_a_folder_of_its_own():
    def name(**given):
        options = {"fuse": False, "rank": 0, "weights": "", "checkpoint": None, "average_with": []}
        return default_name(argparse.Namespace(**options | given))

    assert [
        name(),
        name(fuse=True),
        name(rank=64),
        name(weights="raw", checkpoint=Path("c/step_000500")),
        name(average_with=[Path("a"), Path("b")]),
    ] == [
        "export",
        "export_fused",
        "export_rank64",
        "export_raw_step_000500",
        "export_mean_a_b",
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
    assert difference(*shifts) > 1e-2  # each K has its own constant shift
    written = [folder for folder, _ in _others(tmp_path / "out", read_facts(tmp_path / "out"))]
    assert written == [tmp_path / "out_1steps"], "the program names every folder that it wrote"
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
    )  # from neither K
    assert not list(tmp_path.glob(".out*"))
    monkeypatch.undo()
    with refused("fuse"):
        export_run(tmp_path / "fused", unify, ExportRequest(fuse=True, prompts=PROMPTS))
