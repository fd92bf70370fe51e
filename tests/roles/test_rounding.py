"""Runs on a quantized base: plan, bit-identical resume, export as a plain LoRA, and refusals."""

import importlib.util
import json
import shutil

import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file

from tdmvid.adapters.bundle import read_facts
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.backbones.quantize import QuantizedLinear, held_bytes
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import RunConfig, from_dict
from tdmvid.data.video import write_video
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_run
from tdmvid.parallel import launch
from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan
from tdmvid.plan.remedies import check_fit
from tdmvid.plan.units import GIB
from tdmvid.roles.rounding import story
from tdmvid.roles.rules import check_settings
from tdmvid.sampling.student import use_student
from tdmvid.train.run import build_run
from tdmvid.train.trainer import train

needs_torchao = pytest.mark.skipif(
    not importlib.util.find_spec("torchao"),
    reason="torchao is not installed: pip install -e '.[quantize]'",
)
INT8 = "model.quantize=int8"
PROMPTS = ("a red circle", "a blue square moves left")


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The folder of an uninterrupted run of 4 steps."""
    return train(
        tiny_run(
            tmp_path_factory.mktemp("quantized") / "run",
            INT8,
            "steps=4",
            "ema=0.5",
            "objective.cfg=3",
        )
    )


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


@needs_torchao
@pytest.mark.parametrize("kind", ["int8", "float8"])
@pytest.mark.parametrize("changes", [[], ["parallel.share_base=false"]], ids=["shared", "two"])
@pytest.mark.slow
def test_the_frozen_base_takes_the_planned_bytes(tiny_run, tmp_path, kind, changes):
    config = tiny_run(tmp_path, f"model.quantize={kind}", *changes)
    run, plan = build_run(config, launch.start("none")), make_plan(config)
    networks = [engine.module for engine in run.engines.values()]
    frozen = {id(p): p for network in networks for p in network.parameters() if not p.requires_grad}
    assert (
        held_bytes(torch.nn.ParameterList(frozen.values()))
        == plan.memory()["frozen weights"]
        == run.rounding.held * len(networks if changes else [0])
    )
    whole = make_plan(tiny_run(tmp_path, *changes))
    assert (
        plan.memory()["frozen weights"] < 0.6 * whole.memory()["frozen weights"]
        and run.rounding.whole == whole.weights.base_bytes
    )


@pytest.mark.slow
def test_the_plan_names_the_quantised_base_and_needs_no_torchao(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    plan = make_plan(tiny_run(tmp_path, INT8))
    assert "with int8 (linear layers of the blocks)" in describe(
        plan
    ) and "linear layers" not in describe(make_plan(tiny_run(tmp_path)))
    assert (
        plan.moments()["loading the base"]
        == plan.whole
        == plan.weights.base * 4
        > plan.memory()["frozen weights"]
    )
    assert (
        plan.moments()["checking the export"]
        == make_plan(tiny_run(tmp_path)).moments()["checking the export"]
    )  # on the unquantized base


def test_a_base_that_does_not_fit_is_quantised_and_one_that_is_spread_over_ranks_is_whole(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "tdmvid.plan.counts._autoencoder", lambda *_: (0, 0)
    )  # far more than the tiny base
    monkeypatch.setattr("tdmvid.plan.plan.LIVE_VALUES", 1000)  # a part of the tiny base
    checkpointed = "parallel.gradient_checkpointing=true"
    plain, quantized = (make_plan(tiny_run(tmp_path, checkpointed, *more)) for more in ([], [INT8]))
    with refused("GiB", "model.quantize=int8"):
        check_fit(plain, (plain.total() + quantized.total()) / 2 / GIB)
    offloaded = make_plan(tiny_run(tmp_path, checkpointed, "parallel.offload=all"))
    between = (offloaded.total() + quantized.total()) / 2 / GIB
    for plan, undone in ((plain, ()), (quantized, ("model.quantize=none",))):
        with refused("GiB", *undone, "parallel.offload=all"):
            check_fit(plan, between)


@needs_torchao
def test_the_run_says_what_rounding_changed(whole, tiny_run, tmp_path):
    facts = json.loads((whole / "quantized.json").read_text())
    run = build_run(tiny_run(tmp_path, INT8, "objective.cfg=3"), launch.start("none"))
    assert facts == json.loads(json.dumps(vars(run.rounding))) | {"student": facts["student"]}
    assert (
        facts["times"] == [1.0, 0.75, 0.5, 0.25]
        and all(1e-5 < error < 0.1 for error in facts["errors"])
        and 1e-5 < facts["student"] < 0.1
    )
    assert "frozen base in int8: " in str(
        run.rounding
    ) and f"{facts['errors'][0]:.2%} at t = 1, " in str(run.rounding)
    # Reproduce the measurement of the last error: the same noise, and two networks that share
    # nothing with the run.
    z = torch.randn(
        (1, *run.backbone.latent_shape()),
        generator=torch.Generator().manual_seed(run.config.log.seed),
    )
    plain = build_run(tiny_run(tmp_path, "objective.cfg=3"), launch.start("none"))
    with torch.no_grad():
        first, rounded = (one.roles.teacher(z, torch.ones(1), one.gallery) for one in (plain, run))
        assert difference(rounded, first) == pytest.approx(facts["errors"][0], rel=1e-3)
        x_t, t = (
            run.backbone.process.noise(first, z, torch.full((1,), 0.25)),
            torch.full((1,), 0.25),
        )
        last, rounded = (one.roles.teacher(x_t, t, one.gallery) for one in (plain, run))
        assert difference(rounded, last) == pytest.approx(facts["errors"][-1], rel=1e-3)


@needs_torchao
def test_a_run_on_the_whole_base_is_told_apart_from_one_that_ended_in_its_folder(
    tiny_run, tmp_path, loop_only, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(
            "tdmvid.train.trainer._loop", lambda *_: None
        )  # the run ends before its first checkpoint
        train(tiny_run(tmp_path, "steps=1", INT8))
    assert "quantized to int8" in story(tmp_path)
    train(tiny_run(tmp_path, "steps=1"))
    assert story(tmp_path) == ""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The settings of a folder with three videos."""
    folder = tmp_path_factory.mktemp("real")
    for number in range(3):
        clip = torch.rand(3, 9, 32, 32, generator=torch.Generator().manual_seed(number)) * 2 - 1
        write_video(folder / "videos" / f"{number}.mp4", clip, fps=8)
    return f"real.path={folder / 'videos'}", f"real.cache={folder / 'cache'}"


RUNS = {
    "tdm": ("ema=0.5", "student.schedule=cosine"),
    "float8": ("model.quantize=float8",),
    "fisher": ("objective.kind=fisher",),
    "gan": ("objective.kind=gan",),
    "unify": ("objective.step_set=[1,2,4]", "objective.rollout=full"),
    "bfloat16": ("model.dtype=bfloat16",),
    "kept": ("parallel.gradient_checkpointing=true", "parallel.keep_attention=true"),
}


@needs_torchao
@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    tiny_run, tmp_path, loop_only, real, capsys, changes
):
    changes = (INT8, *changes, *(real if "objective.kind=gan" in changes else ()))
    whole = train(tiny_run(tmp_path / "whole", "steps=4", *changes))
    train(tiny_run(tmp_path / "parts", "steps=4", *changes))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_000004")
    parts = train(tiny_run(tmp_path / "parts", "steps=4", *changes), resume="auto")
    assert capsys.readouterr().out.count("the teacher's x0 prediction changes by") == 3
    trained = sorted((whole / "checkpoints" / "step_000004").glob("*/*.safetensors"))
    assert len(trained) >= 2
    for path in trained:
        a, b = load_file(path), load_file(parts / path.relative_to(whole))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        assert all("lora_" in key or key.startswith(("heads", "step_condition")) for key in a)


@needs_torchao
@pytest.mark.parametrize(
    "changes",
    [[], ["objective.kind=fisher"], ["parallel.gradient_checkpointing=true"]],
    ids=["tdm", "fisher", "checkpointed"],
)
def test_a_run_steps_as_one_on_the_rounded_weights_does(
    tiny_run, tmp_path, loop_only, monkeypatch, changes
):
    """Losses and weights are bit-identical after three steps."""
    changes = (INT8, "steps=3", "objective.cfg=3", *changes)
    quantized = train(tiny_run(tmp_path / "quantized", *changes))
    rounded = []

    def forward(layer, x):
        rounded.append(layer)
        return torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)

    monkeypatch.setattr(QuantizedLinear, "forward", forward)
    plain = train(tiny_run(tmp_path / "plain", *changes))
    assert rounded
    for role in ("student", "fake"):
        a, b = (
            load_file(folder / "checkpoints" / "step_000003" / role / "weights.safetensors")
            for folder in (quantized, plain)
        )
        assert all(torch.equal(a[key], b[key]) for key in a) and any(
            value.any() for key, value in a.items() if "lora_B" in key
        )


@needs_torchao
def test_the_lora_is_a_plain_one_for_the_whole_base(whole, tiny_run, tmp_path):
    """Keys, shapes and dtypes equal those of a run on the unquantized base.

    The export is checked on that base, with the usual tolerance.
    """
    plain = train(tiny_run(tmp_path / "plain", "steps=4", "ema=0.5", "objective.cfg=3"))
    files = [safe_open(folder / "lora" / LORA_FILE, framework="pt") for folder in (whole, plain)]
    mine, theirs = (
        {key: (file.get_tensor(key).shape, file.get_tensor(key).dtype) for key in file.keys()}
        for file in files
    )
    assert mine == theirs and files[0].metadata() == files[1].metadata()
    facts = read_facts(whole / "lora")
    assert facts["error"] < facts["tolerance"] == read_facts(plain / "lora")["tolerance"] == 1e-5
    assert "Its frozen base was quantized to int8" in (whole / "lora" / "README.md").read_text()
    assert "quantized" not in (plain / "lora" / "README.md").read_text()


@needs_torchao
@pytest.mark.parametrize("fuse", [False, True])
def test_an_export_of_its_checkpoint_is_of_the_whole_base(whole, tmp_path, fuse):
    facts = export_run(tmp_path / "out", whole, ExportRequest(prompts=PROMPTS, fuse=fuse))
    assert facts["error"] < 1e-5
    config = from_dict(RunConfig, json.loads((whole / "config.json").read_text()))
    backbone = load_backbone(config.model, config.video)
    z, cond = (
        torch.randn((2, *backbone.latent_shape()), generator=torch.Generator().manual_seed(0)),
        backbone.encode_prompts(list(PROMPTS)),
    )
    found, lora = (
        backbone.stock.latents(use_student(backbone, folder), z, cond, steps=4)
        for folder in (tmp_path / "out", whole / "lora")
    )
    assert (
        difference(found, lora) < 1e-5
    )  # rounding errors in the file would be larger: see quantized.json
    if fuse:
        untouched = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")[
            "transformer_blocks.0.ff.net.0.proj.weight"
        ]
        assert torch.equal(untouched, backbone.network.transformer_blocks[0].ff.net[0].proj.weight)


@pytest.mark.parametrize(
    "settings, facts",
    [
        ({"training": "full"}, ("training='full'",)),
        ({"parallel": {"compile": True}}, ("parallel.compile=true",)),
        ({"parallel": {"offload": "all"}}, ("parallel.offload='all'",)),
        ({"model": {"quantize": "int4"}}, ("'int8'",)),
    ],
)
def test_what_a_quantised_base_cannot_do_is_refused(settings, facts):
    with refused(*facts):
        from_dict(RunConfig, {"model": {"quantize": "int8"}} | settings)


def test_a_quantised_base_is_refused_under_a_launcher_and_planned_so(tiny_run, tmp_path):
    config = tiny_run(tmp_path, INT8)
    with refused("model.quantize='int8'", "'none'"):
        check_settings(config, distributed=True)
    with refused("model.quantize='int8'"):
        make_plan(config, ranks=2)
    check_settings(tiny_run(tmp_path), distributed=True)


def test_a_run_without_torchao_ends_before_the_teacher_is_loaded(tiny_run, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name == "torchao" else find(name, *more),
    )
    monkeypatch.setattr("tdmvid.train.run.load_backbone", lambda *_, **__: pytest.fail("loaded"))
    with refused("torchao", "pip install"):
        build_run(tiny_run(tmp_path, INT8), launch.start("none"))
