"""What a frozen base saves: no gradients of its weights, and no input stored twice."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tdmvid.adapters.lora import attach, tuner_layers
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig


class Products(TorchDispatchMode):
    """Records the shapes of all matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.shapes.append(tuple(out.shape))
        return out


class Student:
    """An adapted network with a nonzero adapter, and one batch for it."""

    def __init__(self, folder, dtype="float32"):
        self.backbone = load_backbone(
            ModelConfig(path=str(folder), dtype=dtype), ClipSize(9, 32, 32)
        )
        self.network = attach(
            self.backbone.network, LoraSettings(rank=2, alpha=4), self.backbone.lora_targets, seed=0
        )
        generator = torch.Generator().manual_seed(0)
        self.adapter = [p for p in self.network.parameters() if p.requires_grad]
        for parameter in self.adapter:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        self.x, self.t = (
            torch.randn(2, *self.backbone.latent_shape(), generator=generator),
            torch.tensor([0.9, 0.4]),
        )
        self.cond = self.backbone.encode_prompts(["a red circle", "a blue square moves left"])

    def loss(self):
        return self.backbone.denoiser(self.network)(self.x, self.t, self.cond).square().mean()

    def gradients(self):
        return torch.autograd.grad(self.loss(), self.adapter)

    def backward_products(self):
        loss = self.loss()
        with Products() as products:
            loss.backward()
        return products.shapes


@pytest.mark.parametrize("frozen", [True, False])
def test_no_gradient_of_a_frozen_weight_is_computed(tiny_cogvideox, frozen):
    student = Student(tiny_cogvideox("sincos"))
    layer = tuner_layers(student.network)[0].base_layer
    layer.weight.requires_grad_(not frozen)
    assert (tuple(layer.weight.shape) in student.backward_products()) != frozen


def kept(student) -> int:
    """Return the bytes that a call with gradients keeps, without parameters."""
    storages = {
        p.untyped_storage().data_ptr(): 0
        for p in (*student.network.parameters(), *student.network.buffers())
    }

    def pack(tensor):
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = student.loss()
    assert loss.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_adapter_in_its_input_s_dtype_has_the_gradients_of_one_in_float32_from_less_memory(
    tiny_cogvideox, dtype
):
    student = Student(tiny_cogvideox("sincos"), dtype)
    gradients, bytes_kept = student.gradients(), kept(student)
    for layer in tuner_layers(student.network):
        layer.cast_input_dtype_enabled = True
    bound = {"bfloat16": 0.03, "float16": 0.004, "float32": 1e-6}[dtype]
    for found, exact in zip(gradients, student.gradients()):
        assert found.norm() > 0 and (found - exact).norm() < bound * exact.norm()
    assert bytes_kept == kept(student) if dtype == "float32" else bytes_kept < 0.95 * kept(student)
