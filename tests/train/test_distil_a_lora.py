"""A run whose teacher has a user's LoRA: what it starts from, resumes and rejects."""

import copy
import json
import shutil
from functools import partial

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from lora_makers import write_diffusers, write_peft
from refusals import refused
from safetensors.torch import load_file, save_file

from tdmvid.adapters.teacher import digest_of, read_adapters
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.backbones.registry import find_family
from tdmvid.config import ModelConfig, RunConfig, from_dict
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_run
from tdmvid.parallel import launch
from tdmvid.plan.make import make_plan
from tdmvid.sampling.student import load_for_sampling
from tdmvid.train.guard import Guard
from tdmvid.train.run import build_run, on_whole_base
from tdmvid.train.trainer import train

PEFT_FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def network(tiny_cogvideox):
    return CogVideoXTransformer3DModel.from_pretrained(tiny_cogvideox("sincos") / "transformer")


@pytest.fixture
def lora(network, tmp_path):
    return write_diffusers(network, tmp_path / "style")


def adapters(path, scale=0.5):
    return f"model.adapters={json.dumps([{'path': str(path), 'scale': scale}])}"


def test_student_and_fake_start_from_the_teacher_with_the_lora(tiny_run, lora, tmp_path):
    runs = [
        build_run(tiny_run(tmp_path / name, *changes), launch.start("none"))
        for name, changes in (("plain", ()), ("style", (adapters(lora),)))
    ]
    outputs = []
    for run in runs:
        x = torch.randn(2, *run.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))
        t, cond = torch.full((2,), 0.5), run.conds([0, 1])
        with torch.no_grad():
            roles = run.roles.student, run.roles.fake, run.networks["teacher"]
            outputs.append([role(x, t, cond) for role in roles])
    plain, style = outputs
    for role in style:
        torch.testing.assert_close(role, style[0])
    assert (style[0] - plain[0]).norm() > 0.01 * plain[0].norm()
    trained = [
        name for name, p in runs[1].engines["student"].module.named_parameters() if p.requires_grad
    ]
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.slow
def test_a_run_writes_both_forms_and_resumes_with_the_same_loras_alone(
    tiny_run, lora, tmp_path, network
):
    out = tmp_path / "out"
    config = tiny_run(out, "steps=2", adapters(lora))
    train(config)
    for name in ("lora", "lora_merged"):
        facts = json.loads((out / name / "export.json").read_text())
        assert facts["error"] <= facts["tolerance"]
    assert "style" in (out / "report.html").read_text()
    export_run(tmp_path / "again", out)
    for name in ("again", "again_merged"):
        found, made = (
            load_file(folder / LORA_FILE)
            for folder in (tmp_path / name, out / name.replace("again", "lora"))
        )
        assert found.keys() == made.keys()
        assert all(torch.equal(x, made[key]) for key, x in found.items())
    fused = export_run(tmp_path / "fused", out, ExportRequest(fuse=True))
    assert fused["error"] <= fused["tolerance"] and fused["model"]["adapters"] == []
    assert not (tmp_path / "fused_merged").exists()
    with refused("model.adapters"):
        train(tiny_run(out, "steps=4", adapters(lora, 1.0)), resume="auto")
    with refused("model.adapters"):
        train(tiny_run(out, "steps=4"), resume="auto")
    write_diffusers(network, lora, target_modules=["to_q"])  # other content under the same path
    with refused("model.adapters"):
        train(config, resume="auto")
    with refused("model.adapters[0].path"):
        export_run(tmp_path / "other", out)
    with refused("model.adapters[0].path"):
        load_pipeline(out / "lora")
    with refused("model.adapters[0].path"):
        load_for_sampling(launch.start("none"), student=out / "lora")


@pytest.mark.slow
def test_a_quantised_base_keeps_the_lora_and_the_student_leaves_it(tiny_run, lora, tmp_path):
    pytest.importorskip("torchao")
    changes = "steps=2", "log.checkpoint_every=0", "model.quantize=int8", adapters(lora)
    out = train(tiny_run(tmp_path / "out", *changes))
    for name in ("lora", "lora_merged"):
        facts = json.loads((out / name / "export.json").read_text())
        assert facts["error"] <= facts["tolerance"]


def test_a_lora_that_the_teacher_cannot_have_is_refused_by_the_plan(tiny_run, lora, tmp_path):
    with refused("model.adapters[0].path", tmp_path / "nowhere"):
        make_plan(tiny_run(tmp_path, adapters(tmp_path / "nowhere")))
    state = load_file(lora / LORA_FILE)
    foreign = {key: torch.randn(*x.shape[:-1], x.shape[-1] + 1) for key, x in state.items()}
    save_file(foreign, tmp_path / "foreign.safetensors")
    with refused("model.adapters[0].path", "another model"):
        make_plan(tiny_run(tmp_path, adapters(tmp_path / "foreign.safetensors")))


@pytest.mark.parametrize(
    "settings, facts",
    [
        ({"model": {"adapters": [{"path": "a", "scale": 0}]}}, "model.adapters[0].scale=0.0"),
        ({"model": {"adapters": [{"scale": 1}]}}, "model.adapters[0].path=''"),
        ({"model": {"adapters": [{"path": "a"}]}, "training": "full"}, "training='full'"),
    ],
)
def test_settings_that_do_not_go_with_a_lora_are_refused(settings, facts):
    with refused(facts):
        from_dict(RunConfig, settings)


def test_a_run_keeps_the_loras_that_it_started_with(tiny_run, lora, tmp_path, network):
    """Their files may be moved or replaced during the run."""
    config = tiny_run(tmp_path / "run", adapters(lora))
    run = build_run(config, launch.start("none"))
    known, layers = run.fingerprint, copy.deepcopy(run.adapters[0].layers)
    write_diffusers(network, lora, target_modules=["to_v"])
    other = build_run(config, launch.start("none"))
    assert other.fingerprint != known and Guard(other, 0)._key() != Guard(run, 0)._key()
    assert run.fingerprint == known and run.adapters[0].layers.keys() == layers.keys()
    for name, layer in run.adapters[0].layers.items():
        assert torch.equal(layer.b, layers[name].b)
    weights = run.engines["student"].weights(averaged=True, everywhere=False)
    shutil.rmtree(lora)
    assert run.fingerprint == known
    on_whole_base(run, weights)


def test_the_digest_of_a_peft_folder_has_its_settings(tmp_path, network):
    first, same, other = (  # of the same tensors
        digest_of(write_peft(network, tmp_path / name, lora_alpha=alpha) / PEFT_FILE)
        for name, alpha in (("first", 8), ("same", 8), ("other", 16))
    )
    assert first == same != other


def test_a_renamed_lora_is_the_same(lora, tmp_path):
    renamed = shutil.copy(lora / LORA_FILE, tmp_path / "renamed.safetensors")
    assert digest_of(renamed) == digest_of(lora / LORA_FILE)


def test_a_teacher_refuses_other_loras_than_those_of_the_training(
    tiny_cogvideox, network, lora, tmp_path
):
    stated = {"path": str(tiny_cogvideox("sincos")), "adapters": [{"path": str(lora)}]}
    config = from_dict(ModelConfig, stated, "model")
    known = [digest_of(lora / LORA_FILE)]
    read = partial(read_adapters, network, config, find_family(config)[1].lora)
    assert [one.digest for one in read(trained=known)] == known
    with refused("model.adapters", "1", "2"):
        read(trained=known * 2)
    write_diffusers(network, lora, target_modules=["to_q"])
    with refused("model.adapters[0].path", lora / LORA_FILE):
        read(trained=known)
