"""A teacher of two experts with a user's LoRAs: a pair, and one for the second expert alone."""

import json

import pytest
import torch
from cards import run_card
from contract_cases import Case, noise
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from refusals import refused
from scales import assert_close
from user_adapter_cases import student_of

from tdmvid.adapters.read import read_lora
from tdmvid.adapters.teacher import adapters_of, load_teacher
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.config import ModelConfig, RunConfig, from_dict, load_config
from tdmvid.diffusion.denoiser import Guided
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.bundle import write_bundles
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import with_merged
from tdmvid.plan.make import make_plan
from tdmvid.roles.build import empty_base
from tdmvid.train.trainer import train

PAIR = ("transformer", "transformer_2")
GRID = (4, 2.0)
CHANGES = {"high": (1, 3, ["to_q", "to_k"]), "low": (2, 2, ["to_q"]), "detail": (3, 1, ["to_v"])}


def write_lora(backbone, folder, expert, seed, rank, targets):
    """Write the LoRA of one expert as diffusers does, with nonzero B."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = backbone.fresh_network().networks[expert]
        config = LoraConfig(r=rank, lora_alpha=5, target_modules=targets)
        inject_adapter_in_model(config, network, "default")
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        state = get_peft_model_state_dict(network, adapter_name="default")
    backbone.lora.save(folder, {key: x.contiguous() for key, x in state.items()}, config)
    return folder / LORA_FILE


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case("WanPipeline", "experts", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def backbone(case):
    return case.backbone()


@pytest.fixture(scope="module")
def loras(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")
    return {
        name: write_lora(backbone, folder / name, PAIR[name != "high"], *change)
        for name, change in CHANGES.items()
    }


@pytest.fixture(scope="module")
def adapters(loras):
    """A pair of which one is named by its file and one by its folder, and one of the second."""
    pair = {"path": str(loras["high"]), "path_2": str(loras["low"].parent)}
    return [
        pair | {"scale": 0.75, "scale_2": -0.5},
        {"path_2": str(loras["detail"]), "scale": 1.5},
    ]


@pytest.fixture(scope="module")
def teacher(case, adapters):
    config = from_dict(ModelConfig, {"path": str(case.folder), "adapters": adapters}, "model")
    return load_teacher(config, case.size)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_teacher_is_the_stock_pipeline_with_the_pair(teacher, backbone, loras, case, cfg):
    z, cond, null = noise(backbone), case.cond(backbone), backbone.encode_prompts([""])
    grid, stock = shifted(*GRID, backbone.process), backbone.stock.pipeline()
    stock.load_lora_weights(loras["high"], adapter_name="high")
    for name in ("low", "detail"):
        stock.load_lora_weights(loras[name], adapter_name=name, load_into_transformer_2=True)
    stock.set_adapters(list(CHANGES), [0.75, -0.5, 1.5])
    stock.scheduler = backbone.student_scheduler(grid)
    theirs = backbone.stock.latents(stock, z, cond, steps=4, cfg=cfg, null=null)
    with torch.no_grad():
        ours = ddim(Guided(teacher.denoiser(teacher.network), null, cfg), z, cond, grid)
        plain = ddim(Guided(backbone.denoiser(backbone.network), null, cfg), z, cond, grid)
    assert_close(ours, theirs, 1e-4)
    assert (ours - plain).norm() > 0.01 * plain.norm()


@pytest.fixture(scope="module")
def student(teacher, case):
    return student_of(teacher, case, GRID)


@pytest.mark.slow
def test_both_exports_are_pairs_that_give_the_student(case, backbone, student, loras, tmp_path):
    stack, merged = tmp_path / "lora", tmp_path / "lora_merged"
    written = write_bundles(
        with_merged({stack: student}), ExportRequest(formats=("diffusers", "comfyui"))
    )
    assert list(written) == [stack, merged]  # each export was reloaded and compared
    assert len(written[stack]["adapter_files"]) == 3 and written[merged]["merged"]
    one_file = read_lora(merged, backbone.lora, backbone.network)
    ranks = {
        part: {layer.rank for name, layer in one_file.layers.items() if name.startswith(part + ".")}
        for part in PAIR
    }
    assert ranks == {"transformer": {5, 2}, "transformer_2": {4, 3, 2}}
    reference, users = student.reference, loras["high"].parents[1]
    for folder in (stack, merged):
        card = (folder / "README.md").read_text()
        for text in ("at scale 0.75", "at scale -0.5 (low-noise", "at scale 1.5 (low-noise"):
            assert text in card
        for pipeline in (run_card(folder, users=users), load_pipeline(folder)):
            found = case.sample(pipeline, backbone, reference.z, steps=GRID[0])
            assert_close(found, student.latents, 1e-4)


def test_a_plan_counts_the_loras_of_both_experts(case, backbone, teacher):
    base = empty_base(RunConfig(model=teacher.config), case.folder, type(backbone))
    added = sum(
        layer.a.numel() + layer.b.numel()
        for lora in adapters_of(teacher)
        for layer in lora.layers.values()
    )
    plain = sum(p.numel() for p in backbone.network.parameters())
    assert sum(p.numel() for p in base.parameters()) == plain + added


@pytest.fixture
def tiny(case, adapters, tmp_path):
    """Config file of a tiny run with both experts and the LoRAs."""
    size = case.size
    settings = {
        "model": {"path": str(case.folder), "adapters": adapters},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "prompts": {"path": str(case.write_prompts(tmp_path)), "cache": str(tmp_path / "cache")},
        "grid": {"kind": "shifted", "shift": 2.0},
        "objective": {"cfg": 2.0},
        "steps": 3,
        "lora": {"rank": 2},
        "log": {"sample_every": 0, "sample_prompts": ["a circle"], "teacher_steps": 4},
        "out": str(tmp_path / "out"),
    }
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    return tmp_path / "tiny.json"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["device", "host"])
def test_a_run_trains_and_exports_both_forms(tiny, place):
    out = train(load_config(tiny, [f"model.idle_expert={place}"]))
    for name in ("lora", "lora_merged"):
        facts = json.loads((out / name / "export.json").read_text())
        assert facts["error"] <= facts["tolerance"]
        assert (out / name / "pytorch_lora_weights_2.safetensors").is_file()


@pytest.mark.parametrize(
    "entry, facts",
    [
        ({"path": "", "path_2": "nowhere"}, ("model.adapters[0].path_2", "nowhere")),
        ({"path": "mine", "scale_2": 2}, ("model.adapters[0].scale_2=2.0",)),
        ({"path": "mine", "path_2": "b", "scale_2": 0}, ("model.adapters[0].scale_2=0.0",)),
    ],
)
def test_a_pair_that_cannot_be_used_is_refused(tiny, entry, facts):
    with refused(*facts):
        make_plan(load_config(tiny, [f"model.adapters={json.dumps([entry])}"]))


def test_a_second_expert_s_lora_is_refused_for_one_network(tiny_run, loras, tmp_path):
    entry = json.dumps([{"path_2": str(loras["low"])}])
    with refused("model.adapters", "path_2"):
        make_plan(tiny_run(tmp_path, f"model.adapters={entry}"))
