"""Every family's student is exported in every format of its consumers, and fused with its base."""

import ast
import json

import pytest
import torch
from cards import card_blocks, run_card
from families import BUILDERS
from refusals import refused
from safetensors.torch import load_file

from tdmvid.adapters.layouts import layouts_of
from tdmvid.adapters.lora import attach
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.registry import families, load_backbone
from tdmvid.config import LoraSettings, ModelConfig
from tdmvid.data.items import Item
from tdmvid.diffusion.grid import shifted
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.bundle import write_bundles
from tdmvid.export.consumers.comfyui import workflow_lack
from tdmvid.export.load import load_pipeline
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import Adapter, Reference
from tdmvid.export.student import Student as Exported
from tdmvid.roles.rounding import difference
from tdmvid.sampling.student import use_student

PROMPTS = ("a red circle moves left", "a blue square")
SETTINGS = LoraSettings(rank=2, alpha=6)
DIFFUSERS_READS = {
    "StableDiffusionPipeline": "kohya",
    "StableDiffusionXLPipeline": "kohya",
    "WanPipeline": "comfyui",
}
"""Pipelines for which diffusers converts other layouts; for others it would ignore all keys."""


class Student:
    """A tiny student of a family, with a LoRA that has an effect."""

    def __init__(self, name, folder, variant=None, dtype="float32"):
        builder = BUILDERS[name]
        torch.manual_seed(0)
        one_network = [each for each in builder.VARIANTS if each != "experts"]
        builder.build(variant or one_network[0]).save_pretrained(folder)
        self.backbone = load_backbone(ModelConfig(path=str(folder), dtype=dtype), builder.SIZE)
        self.grid = shifted(2, 2.0, self.backbone.process)
        taken = self.backbone.takes_images
        images = (
            torch.rand(2, 3, builder.SIZE.height, builder.SIZE.width) * 2 - 1 if taken else None
        )
        self.cond = self.backbone.encode_items(list(PROMPTS), images)
        generator = torch.Generator().manual_seed(1)
        self.z = torch.randn(2, *self.backbone.latent_shape(), generator=generator)
        self.plain = self.sample()
        self.module = attach(self.backbone.network, SETTINGS, self.backbone.lora_targets, seed=0)
        with torch.no_grad():
            for key, parameter in self.module.named_parameters():
                if "lora_B" in key:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.expected = self.sample()
        weights = {
            key: p.detach().clone() for key, p in self.module.named_parameters() if p.requires_grad
        }
        self.exported = Exported(
            self.backbone,
            self.grid,
            weights,
            Reference(self.z, self.cond, tuple(map(Item, PROMPTS))),
            self.expected,
            Adapter(self.module, SETTINGS),
        )

    def sample(self):
        return ddim(self.backbone.denoiser(self.backbone.network), self.z, self.cond, self.grid)


QUICK = ("CogVideoXPipeline", "StableDiffusion3Pipeline")
PARAMS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in sorted(families())
]


@pytest.fixture(scope="module", params=PARAMS)
def student(request, tmp_path_factory):
    return Student(request.param, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bundle(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "lora"
    formats = tuple(layouts_of(student.backbone.pipeline_class))
    write_bundles({folder: student.exported}, ExportRequest(formats))
    return folder


def test_every_format_gives_the_student(student, bundle):
    facts = json.loads((bundle / "export.json").read_text())
    assert (student.expected - student.plain).norm() > 100 * facts[
        "tolerance"
    ] * student.expected.norm()  # give the LoRA an effect
    known = layouts_of(student.backbone.pipeline_class).keys()
    assert "comfyui" in known
    errors = facts.get("errors", {})
    assert errors.keys() == facts.get("formats", {}).keys() == known
    assert max(facts["error"], *errors.values(), 0.0) < facts["tolerance"] == 1e-5
    again = load_backbone(student.backbone.config, student.backbone.size)
    found = again.stock.latents(use_student(again, bundle), student.z, student.cond, steps=2)
    assert difference(found, student.expected) < 1e-3


def test_a_format_is_read_back_as_the_lora_it_was(student, bundle):
    facts = json.loads((bundle / "export.json").read_text())
    trained = {
        key.replace(".default", ""): value for key, value in student.exported.weights.items()
    }
    again = load_backbone(student.backbone.config, student.backbone.size)
    for path in (student.backbone.lora.file, *facts.get("formats", {}).values()):
        lora = read_lora(bundle / path, again.lora, again.network)
        state = lora.state()
        assert state.keys() == trained.keys() and lora.rank == 2
        for key in [key for key in trained if key.endswith("lora_B.weight")]:
            down = key.replace("lora_B", "lora_A")
            torch.testing.assert_close(
                lora.alpha / 2 * state[key] @ state[down],
                6 / 2 * trained[key] @ trained[down],
                atol=1e-6,
                rtol=1e-4,
            )


@pytest.mark.slow
@pytest.mark.parametrize("student", list(DIFFUSERS_READS), indirect=True, scope="module")
def test_diffusers_itself_reads_the_other_programs_file(student, bundle):
    consumer = DIFFUSERS_READS[student.backbone.pipeline_class]
    path = json.loads((bundle / "export.json").read_text())["formats"][consumer]
    pipeline = load_backbone(student.backbone.config, student.backbone.size).stock.pipeline()
    pipeline.load_lora_weights(load_file(bundle / path))
    pipeline.scheduler = student.backbone.student_scheduler(student.grid)
    found = student.backbone.stock.latents(pipeline, student.z, student.cond, steps=2)
    assert difference(found, student.expected) < 1e-3


@pytest.mark.parametrize("student", ["StableDiffusion3Pipeline"], indirect=True, scope="module")
def test_a_format_that_no_program_knows_for_the_family_is_refused(student, tmp_path):
    with refused("'kohya'", "StableDiffusion3Pipeline", "diffusers, comfyui"):
        write_bundles({tmp_path / "lora": student.exported}, ExportRequest(("kohya",)))
    assert not list(tmp_path.iterdir())


def test_a_workflow_ends_at_zero_or_the_card_says_why_there_is_none(student, bundle):
    path = bundle / "comfyui" / "workflow.json"
    lack = workflow_lack(student.backbone, student.grid)
    assert len(
        load_file(next((bundle / "comfyui").glob("*.safetensors")))
    ) > 5 and path.is_file() == (not lack)
    if lack:
        assert (
            "without a workflow, because ComfyUI itself cannot sample this student correctly:"
            f" {lack}" in (bundle / "README.md").read_text()
        )
        return
    sigmas = [
        float(part)
        for part in json.loads(path.read_text())["sigmas"]["inputs"]["sigmas"].split(",")
    ]
    assert len(sigmas) == 3 and sigmas == sorted(sigmas, reverse=True) and sigmas[-1] == 0


def test_the_card_s_code_loads_what_load_pipeline_loads(student, bundle):
    ast.parse(card_blocks(bundle)[0])
    made, loaded = run_card(bundle), load_pipeline(bundle)
    assert (
        type(made.scheduler) is type(loaded.scheduler)
        and made.scheduler.config == loaded.scheduler.config
    )
    part = student.backbone.spec.network_folder
    first, second = (getattr(pipe, part).state_dict() for pipe in (made, loaded))
    assert first.keys() == second.keys() and any("lora_" in key for key in first)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_base_and_lora_become_one_network(student, tmp_path):
    out = tmp_path / "fused"
    facts = write_bundles({out: student.exported}, ExportRequest(fuse=True))[out]
    assert facts["error"] < 1e-5
    again = load_backbone(student.backbone.config, student.backbone.size)
    pipeline = use_student(again, tmp_path / "fused")
    found = again.stock.latents(pipeline, student.z, student.cond, steps=2)
    assert difference(found, student.expected) < 1e-3
    assert not any(
        "lora_" in key
        for key in load_file(tmp_path / "fused" / "diffusion_pytorch_model.safetensors")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, variant, kept",
    [
        ("WanPipeline", "cross_norm", ["vae"]),
        ("WanImageToVideoPipeline", "encoder", ["vae", "image_encoder"]),
        ("ZImagePipeline", "base", []),
    ],
)
def test_parts_that_stay_in_float32_are_loaded_so_beside_a_half_precision_network(
    tmp_path, name, variant, kept
):
    """The autoencoder and the image encoder of Wan make the student's conditions and videos."""
    student = Student(name, tmp_path / "base", variant, "bfloat16")
    facts = write_bundles({tmp_path / "lora": student.exported})[tmp_path / "lora"]
    assert facts["float32_parts"] == kept
    card = (tmp_path / "lora" / "README.md").read_text()
    shown = "".join(f'"{part}": torch.float32, ' for part in kept)
    expected = f'dtype={{{shown}"default": torch.bfloat16}}' if kept else "dtype=torch.bfloat16"
    assert expected in card
    assert ("# pip install ftfy" in card) == name.startswith("Wan"), "it cleans Wan's prompts"
    pipeline = load_pipeline(tmp_path / "lora")
    assert pipeline.transformer.dtype == torch.bfloat16
    for part in ("vae", "image_encoder"):
        if (module := getattr(pipeline, part, None)) is not None:
            assert module.dtype == (torch.float32 if part in kept else torch.bfloat16)
