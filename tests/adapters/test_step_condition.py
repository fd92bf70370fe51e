"""The step condition: zero at first, active only where K is passed, exact in a plain LoRA."""

import pytest
import torch
from families import BUILDERS
from refusals import refused

from tdmvid.adapters.lora import Base, attach
from tdmvid.adapters.step_condition import NAME, condition_on_steps, time_embedding, with_step_count
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig
from tdmvid.diffusion.denoiser import step_level
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import ddim
from tdmvid.export.bundle import write_bundles
from tdmvid.export.student import Adapter, Reference
from tdmvid.export.student import Student as Exported
from tdmvid.roles.rounding import difference

SETTINGS = LoraSettings(rank=2, alpha=8)


class Student:
    """A tiny CogVideoX with a LoRA that has an effect; its step condition is zero until `wake`."""

    def __init__(self, folder):
        self.backbone = load_backbone(ModelConfig(path=str(folder)), ClipSize(9, 32, 32))
        self.module = attach(self.backbone.network, SETTINGS, self.backbone.lora_targets, seed=0)
        generator = torch.Generator().manual_seed(1)
        self.z = torch.randn(2, *self.backbone.latent_shape(), generator=generator)
        self.cond = self.backbone.encode_prompts(["a red circle moves left", "a blue square"])
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.before = self.sample(4, self.backbone.denoiser(self.module))
        [self.condition] = condition_on_steps(self.module, seed=0)

    def wake(self):
        with torch.no_grad():
            self.condition.outer.weight.normal_(generator=torch.Generator().manual_seed(2)).mul_(
                3.0
            )

    def sample(self, steps, denoiser=None):
        denoiser = denoiser or with_step_count(self.backbone.denoiser(self.module), self.module)
        return ddim(
            denoiser,
            self.z,
            self.cond.with_step_count(steps, 2, "cpu"),
            uniform(steps, self.backbone.process),
        )


@pytest.fixture(params=["sincos", "temporal"])
def student(request, tiny_cogvideox):
    return Student(tiny_cogvideox(request.param))


def test_the_level_of_k_is_that_of_a_shifted_time():
    assert step_level(torch.tensor([1.0, 2.0, 4.0, 8.0])).tolist() == pytest.approx(
        [1, 0.75, 0.5, 0.3]
    )


def test_iteration_zero_is_exactly_the_student_without_it(student):
    assert torch.equal(student.sample(4), student.before)


def test_each_k_is_another_network_and_the_teacher_hears_of_none(student):
    x, t = student.z, torch.full((2,), 0.6)
    denoise = with_step_count(student.backbone.denoiser(student.module), student.module)
    teacher = student.backbone.denoiser(Base(student.module, student.module))
    base = teacher(x, t, student.cond.with_step_count(4, 2, "cpu"))
    student.wake()
    found = [denoise(x, t, student.cond.with_step_count(k, 2, "cpu")) for k in (1, 4)]
    assert difference(*found) > 1e-3
    assert torch.equal(teacher(x, t, student.cond.with_step_count(4, 2, "cpu")), base)


def test_the_condition_is_trained_and_saved_with_the_adapter(student):
    x0 = with_step_count(student.backbone.denoiser(student.module), student.module)(
        student.z, torch.full((2,), 0.6), student.cond.with_step_count(4, 2, "cpu")
    )
    x0.sum().backward()
    trained = {name for name, p in student.module.named_parameters() if p.requires_grad}
    assert {f"{NAME}.outer.weight", f"{NAME}.outer.bias"} <= trained and len(trained) > 4
    assert student.condition.outer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("steps", [1, 4])
def test_one_plain_lora_per_k_is_that_student_in_the_stock_pipeline(student, tmp_path, steps):
    student.wake()
    expected = student.sample(steps)
    weights = {
        name: p.detach().clone() for name, p in student.module.named_parameters() if p.requires_grad
    }
    exported = Exported(
        student.backbone,
        uniform(steps, student.backbone.process),
        weights,
        Reference(student.z, student.cond),
        expected,
        Adapter(student.module, SETTINGS),
    )
    facts = write_bundles({tmp_path / "lora": exported})[tmp_path / "lora"]
    assert facts["error"] < 1e-5
    assert (
        expected - student.sample(steps, student.backbone.denoiser(student.module))
    ).norm() > 1e-2 * expected.norm()  # K has an effect


def test_the_embedding_of_a_text_refiner_is_not_that_of_the_blocks():
    network = BUILDERS["HunyuanVideo15Pipeline"].build("base").transformer
    embedding = time_embedding(network)
    assert embedding.module is network.time_embed.timestep_embedder
    assert network.get_submodule(embedding.last) is embedding.module.linear_2
    refiner = network.context_embedder.time_text_embed.timestep_embedder
    assert type(refiner) is type(embedding.module), "there are two of the kind"


def test_a_network_without_a_time_embedding_is_refused():
    with refused("Linear", "k_condition=false"):
        time_embedding(torch.nn.Linear(2, 2))
