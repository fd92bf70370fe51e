"""An export gives the student's samples in stock diffusers, or is not written."""

import contextlib
import json
import math
import shutil
import types
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from refusals import refused
from safetensors.torch import load_file, save_file

from tdmvid.adapters.layouts import KeyLayout
from tdmvid.adapters.load import load_student
from tdmvid.adapters.lora import attach
from tdmvid.backbones.lora_files import LORA_FILE
from tdmvid.backbones.registry import load_backbone
from tdmvid.backbones.scheduler import TrajectoryScheduler
from tdmvid.config import ClipSize, LoraSettings, ModelConfig
from tdmvid.diffusion.grid import explicit, uniform
from tdmvid.diffusion.sampler import ddim
from tdmvid.export import check
from tdmvid.export.bundle import write_bundles
from tdmvid.export.check import Agreement
from tdmvid.export.consumers import Consumer, consumers
from tdmvid.export.replace import replacing
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import Adapter, Reference
from tdmvid.export.student import Student as Exported
from tdmvid.roles.rounding import difference

PROMPTS = ["a red circle moves left", "a blue square"]
SETTINGS = LoraSettings(rank=2, alpha=8)
UNEVEN = [999, 856, 665, 399]


class Student:
    """A student with a LoRA that has an effect, ready for export."""

    def __init__(self, folder, timesteps=None):
        self.source = folder
        self.backbone = load_backbone(ModelConfig(path=str(folder)), ClipSize(9, 32, 32))
        self.module = attach(self.backbone.network, SETTINGS, self.backbone.lora_targets, seed=0)
        generator = torch.Generator().manual_seed(1)
        self.z = torch.randn(2, *self.backbone.latent_shape(), generator=generator)
        self.cond = self.backbone.encode_prompts(PROMPTS)
        process = self.backbone.process
        self.grid = explicit(timesteps, process) if timesteps else uniform(4, process)
        self.plain = self.sample()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.expected = self.sample()

    def sample(self):
        return ddim(self.backbone.denoiser(self.module), self.z, self.cond, self.grid)

    def student(self, expected=None):
        weights = {
            name: p.detach().clone()
            for name, p in self.module.named_parameters()
            if p.requires_grad
        }
        return Exported(
            self.backbone,
            self.grid,
            weights,
            Reference(self.z, self.cond),
            self.expected if expected is None else expected,
            Adapter(self.module, SETTINGS),
        )

    def export(self, folder, expected=None):
        return write_bundles({folder: self.student(expected)})[folder]

    def stock(self, folder, scheduler=CogVideoXDDIMScheduler):
        """Sample as a user does: stock pipeline, exported folder, prompts."""
        pipeline = CogVideoXPipeline.from_pretrained(self.source)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.load_lora_weights(folder)
        pipeline.scheduler = scheduler.from_pretrained(folder)
        return pipeline(
            PROMPTS,
            height=32,
            width=32,
            num_frames=9,
            num_inference_steps=4,
            guidance_scale=1.0,
            latents=self.z,
            max_sequence_length=12,
            output_type="latent",
        ).frames


@pytest.fixture(scope="module")
def student(tiny_cogvideox):
    return Student(tiny_cogvideox("rotary"))


@pytest.fixture(scope="module")
def bundle(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "lora"
    student.export(folder)
    return folder


def test_the_lora_gives_the_student_s_latents_in_a_stock_pipeline(student, bundle):
    assert difference(student.plain, student.expected) > 0.05  # give the LoRA an effect
    assert difference(student.stock(bundle), student.expected) < 1e-4


def test_without_its_metadata_the_lora_has_another_scale_and_is_another_student(
    student, bundle, tmp_path
):
    save_file(load_file(bundle / LORA_FILE), tmp_path / LORA_FILE)
    (tmp_path / "scheduler_config.json").write_bytes(
        (bundle / "scheduler_config.json").read_bytes()
    )
    assert difference(student.stock(tmp_path), student.expected) > 1e-2


def test_a_uniform_grid_ships_the_stock_scheduler(bundle):
    config = json.loads((bundle / "scheduler_config.json").read_text())
    assert (
        config["_class_name"] == "CogVideoXDDIMScheduler"
        and config["timestep_spacing"] == "trailing"
    )


def test_another_grid_ships_its_timesteps_and_gives_the_student_s_latents(tiny_cogvideox, tmp_path):
    student = Student(tiny_cogvideox("sincos"), UNEVEN)
    facts = student.export(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "scheduler_config.json").read_text())
    assert (
        config["_class_name"] == "TrajectoryScheduler"
        and config["trajectory"] == UNEVEN == facts["timesteps"]
    )
    assert (
        difference(student.stock(tmp_path / "lora", TrajectoryScheduler), student.expected) < 1e-4
    )
    # the uniform grid is another sampler
    assert difference(student.stock(tmp_path / "lora"), student.expected) > 1e-2


def test_the_facts_and_the_card_are_those_of_the_student(student, bundle):
    facts = json.loads((bundle / "export.json").read_text())
    assert facts["error"] <= 1e-5 and (facts["rank"], facts["alpha"], facts["samples"]) == (2, 8, 2)
    assert facts["timesteps"] == [999, 749, 499, 249]
    card = (bundle / "README.md").read_text()
    assert (
        "rank 2, alpha 8" in card
        and "num_inference_steps=4, guidance_scale=1.0" in card
        and "9 x 32 x 32" in card
    )


@pytest.mark.parametrize(
    "errors, error",
    [
        ((0.1, 0.2), 0.2),
        ((0.9, 0.1, 0.2, 0.3), 0.3),
        ((0.3,), 0.3),
        ((0.1, 0.9, 0.2), 0.2),
        ((0.9, 0.1, 0.8, 0.2), 0.8),
    ],
)
def test_one_sample_that_amplifies_rounding_is_not_a_wrong_file(errors, error):
    assert Agreement(errors).error == error
    assert math.isnan(Agreement((*errors, math.nan, 0.0, 0.0)).error)


def test_differences_are_those_of_each_sample_by_its_own_size():
    expected = torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    found = expected + torch.tensor([[0.5, 0.0], [0.0, 1.0]])
    assert Agreement.of(found, expected).by_sample == pytest.approx((0.1, 0.02))


def test_a_sample_above_the_tolerance_is_said(student, tmp_path, capsys):
    latents = student.expected.repeat(2, 1, 1, 1, 1)[:3].clone()
    moved = types.SimpleNamespace(latents=latents.clone())
    moved.latents[1] += 1
    agreement = check._compare(latents, moved, 1e-3)
    assert agreement.error == 0 < 0.1 < max(agreement.by_sample)
    assert "1 of 3 samples differ" in capsys.readouterr().out
    moved.latents[2] += 1
    with refused("tolerance 1e-03", error=RuntimeError):
        check._compare(latents, moved, 1e-3)


def test_an_export_that_differs_from_the_student_is_not_written(student, tmp_path):
    with refused("tolerance 1e-05", error=RuntimeError):
        student.export(tmp_path / "lora", student.expected + 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil", [lambda x: x + 1, lambda x: x * float("nan")], ids=["too far", "not a number"]
)
def test_a_failed_export_leaves_an_older_one_as_it_was(student, tmp_path, spoil):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "export.json").write_text('{"is": "an older one"}')
    with refused("tolerance 1e-05", error=RuntimeError):
        student.export(tmp_path / "lora", spoil(student.expected))
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == [
        "lora",
        "lora/export.json",
    ]
    assert (tmp_path / "lora" / "export.json").read_text() == '{"is": "an older one"}'


def test_an_export_replaces_an_older_one(student, bundle, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/old").touch()
    (tmp_path / "lora/export.json").write_text('{"files": ["old"]}')
    student.export(tmp_path / "lora")
    assert {p.name for p in (tmp_path / "lora").iterdir()} == {p.name for p in bundle.iterdir()}
    assert [p.name for p in tmp_path.iterdir()] == ["lora"]


def test_what_no_export_wrote_is_not_replaced(student, tmp_path):
    student.export(tmp_path / "lora")
    (tmp_path / "lora/.git").mkdir()
    (tmp_path / "lora/.git/HEAD").write_text("ref: refs/heads/main")
    with refused(tmp_path / "lora", "'.git/HEAD'", "--out"):
        student.export(tmp_path / "lora")
    assert (tmp_path / "lora/.git/HEAD").read_text() == "ref: refs/heads/main" and (
        tmp_path / "lora/export.json"
    ).is_file()


def test_an_export_may_be_read_by_whoever_may_read_a_new_file(bundle, tmp_path):
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in bundle.rglob("*") if path.is_file()} == {
        (tmp_path / "usual").stat().st_mode
    }


@pytest.fixture
def two(tmp_path):
    """`two("a")` exports that content to two folders and returns them."""
    folders = [tmp_path / "lora", tmp_path / "lora_1steps"]

    def write(content, *, fail=None):
        with replacing(*folders) as aside:
            for folder in folders:
                (aside / folder.name).mkdir()
                (aside / folder.name / "export.json").write_text(json.dumps({"is": content}))
                if folder.name == fail:
                    raise KeyboardInterrupt
        return [json.loads((folder / "export.json").read_text())["is"] for folder in folders]

    return write


def read(tmp_path):
    return {
        str(path.relative_to(tmp_path)): json.loads(path.read_text())["is"]
        for path in sorted(tmp_path.rglob("*"))
        if path.is_file()
    }


def test_a_set_is_replaced_as_one_or_not_at_all(tmp_path, two):
    assert two("a") == ["a", "a"]
    for failing in ("lora", "lora_1steps"):
        with pytest.raises(KeyboardInterrupt):
            two("b", fail=failing)
        assert read(tmp_path) == {"lora/export.json": "a", "lora_1steps/export.json": "a"}
    assert two("c") == ["c", "c"] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("older", ["both", "one", "none"])
@pytest.mark.parametrize("renames", range(5))
def test_a_set_whose_replacement_was_killed_is_put_back(tmp_path, monkeypatch, two, older, renames):
    """After a kill at any rename, the next export restores the older set, even if it fails."""
    if older != "none":
        two("old")
    if older == "one":
        shutil.rmtree(tmp_path / "lora_1steps")
    before, rename, done = read(tmp_path), Path.rename, []

    def killed(path, target):
        if len(done) == renames:
            raise SystemExit
        done.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        patch.setattr(
            "tdmvid.export.replace._put_back", lambda *_: None
        )  # a killed process does not clean up
        with contextlib.suppress(SystemExit):
            two("new")
    if not list(tmp_path.glob(".lora.part")):  # all renames were done before the kill
        assert set(read(tmp_path).values()) == {"new"}
        return
    with pytest.raises(KeyboardInterrupt):
        two("newer", fail="lora")
    assert read(tmp_path) == before and not list(tmp_path.glob(".*"))


def lora_of(network, folder):
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    CogVideoXPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(network)
    )


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"attention_head_dim": 32}, ("to_q.lora_A.weight", "[2, 64]", "[32, 32]")),
        ({"num_layers": 3}, ("transformer_blocks.2", "CogVideoXTransformer3DModel")),
    ],
)
def test_a_lora_of_another_model_is_refused_by_its_first_wrong_key(
    student, tmp_path, change, facts
):
    config = CogVideoXTransformer3DModel.load_config(student.source, subfolder="transformer")
    lora_of(CogVideoXTransformer3DModel.from_config({**config, **change}), tmp_path)
    with refused(LORA_FILE, *facts):
        load_student(student.backbone.stock.pipeline(), tmp_path, student.backbone.lora)


def test_a_folder_without_a_lora_is_refused(student, tmp_path):
    with refused(tmp_path, LORA_FILE):
        load_student(student.backbone.stock.pipeline(), tmp_path, student.backbone.lora)


def test_a_new_consumer_is_written_checked_and_named_on_the_card(student, tmp_path, monkeypatch):
    """It is one class. Bundle, check and card use only the Consumer interface."""

    class Other(Consumer):
        layout = KeyLayout("other", "down", "up", {"CogVideoXPipeline": lambda name: f"net.{name}"})

        def card_text(self, facts):
            return f"Other, in {facts['steps']} steps"

        def write_extras(self, loras, student):
            loras[0].with_name("steps.txt").write_text(str(student.grid.steps))
            return {"other_steps": student.grid.steps}

    monkeypatch.setitem(consumers(), "other", Other())
    out = tmp_path / "lora"
    facts = write_bundles({out: student.student()}, ExportRequest(("other",)))[out]
    assert facts["other_steps"] == 4 and facts["errors"]["other"] <= facts["tolerance"]
    assert "other/steps.txt" in facts["files"]
    assert all(key.startswith("net.") for key in load_file(out / facts["formats"]["other"]))
    assert "Other, in 4 steps" in (out / "README.md").read_text()
