"""A teacher with a user's LoRAs, in every family: it equals stock code and can be distilled."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cards import run_card
from contract_cases import CASES, noise
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from refusals import refused
from safetensors.torch import load_file
from scales import assert_close
from user_adapter_cases import student_of

from tdmvid.adapters.frozen import merge_carried
from tdmvid.adapters.layouts import layouts_of
from tdmvid.adapters.load import check_loaded, stock_file
from tdmvid.adapters.read import read_lora
from tdmvid.adapters.teacher import load_teacher
from tdmvid.config import ModelConfig, RunConfig, from_dict
from tdmvid.diffusion.denoiser import Guided
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.bundle import _student_facts, write_bundles
from tdmvid.export.card import _python
from tdmvid.export.check import Agreement
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import with_merged
from tdmvid.roles.build import empty_base

ONE_NETWORK = dict(reversed([case for case in CASES if "experts" not in (case[1] or "")]))
"""One variant of each family. Teachers with two experts: test_user_adapter_pairs.py."""
pytestmark = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case[0] == "CogVideoXPipeline" else pytest.mark.slow)
        for case in ONE_NETWORK.items()
    ],
    indirect=True,
    scope="module",
    ids=lambda case: case[0],
)
SCALES = (0.75, -1.5)
GRID = (4, 2.0)


def write_lora(backbone, folder, seed, **settings):
    """Write a LoRA folder as peft and diffusers do, with nonzero B."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = backbone.fresh_network()
        config = LoraConfig(**settings)
        inject_adapter_in_model(config, network, "default")
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        state = get_peft_model_state_dict(network, adapter_name="default")
    backbone.lora.save(folder, {key: x.contiguous() for key, x in state.items()}, config)
    return folder


@pytest.fixture(scope="module")
def loras(case, backbone, tmp_path_factory):
    """Two LoRAs of a user with different ranks, alphas and targets; one has a bias."""
    folder, targets = tmp_path_factory.mktemp("users"), list(backbone.lora_targets)
    return (
        write_lora(backbone, folder / "style", 1, r=3, lora_alpha=5, target_modules=targets),
        write_lora(
            backbone, folder / "motion", 2, r=1, lora_alpha=2, target_modules=targets[:2],
            lora_bias=True,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapters(loras):
    return [{"path": str(path), "scale": scale} for path, scale in zip(loras, SCALES, strict=True)]


@pytest.fixture(scope="module")
def teacher(case, adapters):
    config = from_dict(ModelConfig, {"path": str(case.folder), "adapters": adapters}, "model")
    return load_teacher(config, case.size)


def stock_teacher(backbone, loras):
    """Return the stock pipeline with the LoRAs, loaded by stock code as users do."""
    pipeline = backbone.stock.pipeline()
    for name, folder in zip(("style", "motion"), loras, strict=True):
        backbone.lora.add(pipeline, folder, name)
    backbone.lora.use(pipeline, dict(zip(("style", "motion"), SCALES, strict=True)))
    pipeline.scheduler = backbone.student_scheduler(shifted(*GRID, backbone.process))
    return pipeline


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_teacher_is_the_stock_pipeline_with_the_user_s_loras(
    teacher, backbone, loras, case, cfg
):
    z, cond = noise(backbone), case.cond(backbone)
    null, grid = backbone.encode_prompts([""]), shifted(*GRID, backbone.process)
    stock = stock_teacher(backbone, loras)
    theirs = backbone.stock.latents(stock, z, cond, steps=4, cfg=cfg, null=null)
    denoiser, bare = (
        Guided(each.denoiser(each.network), null, cfg, combine=each.combine)
        for each in (teacher, backbone)
    )
    with torch.no_grad():
        ours, plain = ddim(denoiser, z, cond, grid), ddim(bare, z, cond, grid)
    assert_close(ours, theirs, 1e-4)
    assert (ours - plain).norm() > 0.01 * plain.norm()


def test_merged_layers_are_plain_and_compute_the_same(teacher, backbone, case):
    z, cond = noise(backbone), case.cond(backbone)
    network, t = copy.deepcopy(teacher.network), torch.full((len(z),), 0.5)
    for name in [name for name, p in network.named_parameters() if "carried_bias" in name]:
        network.get_parameter(
            name
        ).data.zero_()  # not every layer has a bias that could take the LoRA's
    with torch.no_grad():
        carried = teacher.predict_x0(network, z, t, cond)
        merge_carried(network)
        merged = teacher.predict_x0(network, z, t, cond)
    assert network.state_dict().keys() == backbone.network.state_dict().keys()
    assert_close(merged, carried, 1e-4)


@pytest.fixture(scope="module")
def student(teacher, case):
    return student_of(teacher, case, GRID)


@pytest.mark.slow
def test_the_student_comes_out_beside_the_loras_and_with_them_in_one_file(
    case, backbone, student, adapters, loras, tmp_path
):
    stack, merged = tmp_path / "lora", tmp_path / "lora_merged"
    formats = ("diffusers", *({"comfyui"} & layouts_of(backbone.pipeline_class).keys()))
    written = write_bundles(with_merged({stack: student}), ExportRequest(formats=formats))
    assert list(written) == [stack, merged]  # each export was reloaded and compared
    named = written[stack]["model"]["adapters"]
    assert [{key: one[key] for key in ("path", "scale")} for one in named] == adapters
    assert written[merged]["model"]["adapters"] == () and written[merged]["merged"]
    one_file = read_lora(merged, backbone.lora, backbone.network)
    assert {layer.rank for layer in one_file.layers.values()} == {6, 5}
    own = read_lora(stack, backbone.lora, backbone.network)
    assert {layer.rank for layer in own.layers.values()} == {2}
    reference, part = student.reference, backbone.spec.network_folder
    for folder in (stack, merged):
        card = (folder / "README.md").read_text()
        assert all(text in card for text in ("style", "at scale 0.75", "motion", "at scale -1.5"))
        for pipeline in (
            run_card(folder, users=loras[0].parent),
            load_pipeline(folder),
        ):
            lean = backbone.stock.pipeline(getattr(pipeline, part))
            lean.scheduler = pipeline.scheduler
            found = backbone.stock.latents(lean, reference.z, reference.cond, steps=GRID[0])
            assert_close(found, student.latents, 1e-4)


def test_the_card_has_stock_code_where_the_check_loaded_the_files_as_they_are(
    student, loras, tmp_path
):
    facts = _student_facts(student, "float32", Agreement((0.0,)), 1.0, adapted=True) | {"rank": 2}
    stock, ours = _python(student, facts).split("```python\n")[1:]
    assert "style" in stock and "load_pipeline" not in stock and "load_pipeline" in ours
    changed = shutil.copytree(loras[0], tmp_path / "changed") / student.backbone.lora.file
    other = replace(student.adapters[0], where=str(changed), digest="of another content")
    text = _python(replace(student, adapters=(other, student.adapters[1])), facts)
    [code] = text.split("```python\n")[1:]
    assert (
        "load_pipeline" in code and "adapter_name" not in code and f"changed/{changed.name}" in text
    )
    assert str(tmp_path) not in text


def test_a_lora_of_another_file_name_is_loaded_by_stock_code_if_that_can_name_it(
    student, backbone, loras, tmp_path
):
    """diffusers accepts a file name, peft does not."""
    files, facts = (
        backbone.lora,
        _student_facts(student, "float32", Agreement((0.0,)), 1.0, adapted=True),
    )
    single = Path(shutil.copy(loras[0] / files.file, tmp_path / "style.safetensors"))
    lora = replace(student.adapters[0], where=str(single), digest="")
    text = _python(replace(student, adapters=(lora, student.adapters[1])), facts | {"rank": 2})
    assert str(tmp_path) not in text and "style.safetensors" in text
    if not files.any_name:
        assert stock_file(lora, files) is None and "adapter_name" not in text
        return
    assert 'weight_name="style.safetensors", adapter_name="adapter_0"' in text
    # the loader of a network, unlike that of a pipeline, is always given the name
    assert ('weight_name="pytorch' in text) == ("pipe.load_lora_weights" not in files.load_code)
    pipeline = backbone.stock.pipeline()
    files.add(pipeline, tmp_path, "style", file="style.safetensors")
    files.use(pipeline, {"style": lora.strength})
    check_loaded(getattr(pipeline, files.part), lora, adapter="style")


def test_a_lora_is_checked_before_the_base_is_loaded(case, adapters, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(case.folder, base, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = from_dict(ModelConfig, {"path": str(base), "adapters": adapters}, "model")
    with refused("model.adapters[0].path", adapters[0]["path"]):
        load_teacher(config, case.size, trained=["of another content"] * 2)


def test_a_plan_counts_the_loras(case, backbone, teacher, loras):
    base = empty_base(RunConfig(model=teacher.config), case.folder, type(backbone))
    own, added = (
        sum(p.numel() for p in backbone.network.parameters()),
        sum(x.numel() for lora in loras for x in load_file(lora / backbone.lora.file).values()),
    )
    assert sum(p.numel() for p in base.parameters()) == own + added
