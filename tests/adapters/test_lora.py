"""Student and fake are adapters on one frozen base: only they train, the teacher never changes."""

from dataclasses import replace

import pytest
import torch
from refusals import refused
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tdmvid.adapters.lora import Base, adapters_off, attach, host_copy, shared_copy
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, LoraSettings, ModelConfig
from tdmvid.roles.rounding import difference

SETTINGS = LoraSettings(rank=2, alpha=4)


class Trio:
    """The three roles on one base, with a batch to call them on."""

    def __init__(self, folder):
        self.backbone = load_backbone(ModelConfig(path=str(folder)), ClipSize(9, 32, 32))
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(2, *self.backbone.latent_shape(), generator=generator)
        self.t = torch.tensor([0.9, 0.4])
        self.cond = self.backbone.encode_prompts(["a red circle", "a blue square moves left"])
        self.plain = self.out(self.backbone.network)
        fake = shared_copy(self.backbone.network)
        self.student = attach(self.backbone.network, SETTINGS, self.backbone.lora_targets, seed=0)
        self.fake = attach(fake, SETTINGS, self.backbone.lora_targets, seed=1)
        self.teacher = Base(self.student, self.student)

    def call(self, network):
        return self.backbone.denoiser(network)(self.x, self.t, self.cond)

    @torch.no_grad()
    def out(self, network):
        return self.call(network)

    def train(self, network, steps=2):
        own = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(own, lr=1.0)
        for _ in range(steps):
            self.call(network).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture(params=["sincos", "rotary"])
def trio(tiny_cogvideox, request):
    return Trio(tiny_cogvideox(request.param))


def adapters(network):
    return {name: p.detach().clone() for name, p in network.named_parameters() if "lora_" in name}


def base(network):
    return {
        name.replace(".base_layer", ""): p
        for name, p in network.named_parameters()
        if "lora_" not in name
    }


def test_new_adapters_give_the_teacher_s_outputs_exactly(trio):
    assert trio.plain.abs().mean() > 0.1
    for network in (trio.student, trio.fake, trio.teacher):
        assert torch.equal(trio.out(network), trio.plain)


def test_the_copy_shares_every_weight_of_the_base(trio):
    student, fake = base(trio.student), base(trio.fake)
    assert student.keys() == fake.keys() and len(student) > 20
    assert all(fake[name] is p for name, p in student.items())
    held = {t.data_ptr() for net in (trio.student, trio.fake) for t in net.buffers()}
    assert held == {t.data_ptr() for t in trio.student.buffers()}


def test_the_copy_adds_no_weight_memory(tiny_cogvideox):
    network = load_backbone(
        ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32)
    ).network
    copy = shared_copy(network)

    def size(*networks):
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for n in networks
            for t in n.state_dict().values()
        }
        return sum(storages.values())

    assert copy is not network and size(network, copy) == size(network) > 10_000


def test_adapters_alone_are_trainable_and_float32(tiny_cogvideox):
    half = load_backbone(
        ModelConfig(path=str(tiny_cogvideox("sincos")), dtype="bfloat16"), ClipSize(9, 32, 32)
    )
    student = attach(half.network, SETTINGS, half.lora_targets, seed=0)
    kinds = {("lora_" in name, p.requires_grad, p.dtype) for name, p in student.named_parameters()}
    assert kinds == {(True, True, torch.float32), (False, False, torch.bfloat16)}


@pytest.mark.parametrize("role, other", [("student", "fake"), ("fake", "student")])
def test_training_one_adapter_changes_neither_the_other_nor_the_teacher(trio, role, other):
    before = {name: p.detach().clone() for name, p in base(trio.student).items()}
    spectator = adapters(getattr(trio, other))
    trio.train(getattr(trio, role))
    assert difference(trio.out(getattr(trio, role)), trio.plain) > 1e-3
    assert torch.equal(trio.out(getattr(trio, other)), trio.plain) and torch.equal(
        trio.out(trio.teacher), trio.plain
    )
    assert all(torch.equal(p, before[name]) for name, p in base(trio.student).items())
    assert all(
        torch.equal(p, spectator[name]) for name, p in adapters(getattr(trio, other)).items()
    )


def test_calling_the_teacher_leaves_the_student_its_adapter(trio):
    trio.train(trio.student)
    student = trio.out(trio.student)
    trio.out(trio.teacher)
    assert torch.equal(trio.out(trio.student), student) and not torch.equal(student, trio.plain)
    with pytest.raises(ZeroDivisionError), adapters_off(trio.student):
        raise ZeroDivisionError
    assert torch.equal(trio.out(trio.student), student)


def test_a_teacher_call_between_forward_and_backward_leaves_the_gradient_alone(trio):
    def gradient(between):
        loss = trio.call(trio.student).square().mean()
        between()
        loss.backward()
        found = {
            name: p.grad.clone() for name, p in trio.student.named_parameters() if p.requires_grad
        }
        trio.student.zero_grad()
        return found

    plain, crossed = gradient(lambda: None), gradient(lambda: trio.out(trio.teacher))
    assert plain.keys() == crossed.keys() and sum(g.abs().sum() for g in plain.values()) > 0
    assert all(torch.equal(g, crossed[name]) for name, g in plain.items())


def test_one_seed_gives_one_adapter_and_the_global_generator_is_left_alone(tiny_cogvideox):
    state, made = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        backbone = load_backbone(
            ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32)
        )
        torch.rand(7)
        before = torch.get_rng_state()
        made.append(adapters(attach(backbone.network, SETTINGS, backbone.lora_targets, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert any(not torch.equal(made[0][name], made[2][name]) for name in made[0])


@pytest.mark.parametrize(
    "target, what",
    [
        ("transformer_blocks", "ModuleList"),
        ("norm_final", "LayerNorm"),
        ("attn1", "Attention"),
        ("", "CogVideoXTransformer3DModel"),
    ],
)
def test_a_target_that_no_lora_can_adapt_is_named_with_what_it_is(tiny_cogvideox, target, what):
    network = load_backbone(
        ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32)
    ).network
    with refused("lora.targets", repr(target), what):
        attach(network, replace(SETTINGS, targets=(target,)), (), seed=0)


def test_targets_can_be_chosen_and_one_that_names_nothing_is_refused(tiny_cogvideox):
    backbone = load_backbone(ModelConfig(path=str(tiny_cogvideox("sincos"))), ClipSize(9, 32, 32))
    with refused("lora.targets", "'to_x'", "CogVideoXTransformer3DModel"):
        attach(
            backbone.network, LoraSettings(targets=("to_q", "to_x")), backbone.lora_targets, seed=0
        )
    student = attach(
        backbone.network, LoraSettings(rank=2, targets=("to_q",)), backbone.lora_targets, seed=0
    )
    assert {name.split(".lora_")[0].split(".")[-1] for name in adapters(student)} == {"to_q"}


def test_a_copy_in_host_memory_leaves_nothing_on_the_device():
    """The GPU is simulated. Merging there in float32 would take three times the base's memory."""
    with FakeTensorMode():
        layer = nn.Module()
        layer.weight, layer.inner = (
            nn.Parameter(torch.empty(4, 4, device="cuda"), requires_grad=False),
            nn.Module(),
        )
        layer.inner.register_buffer("table", torch.empty(2, device="cuda"))
        found = host_copy(layer)
        assert (
            {x.device.type for x in (*found.parameters(), *found.buffers())}
            == {"cpu"}
            != {layer.weight.device.type}
        )
        assert isinstance(found.weight, nn.Parameter) and not found.weight.requires_grad


def test_a_copy_in_host_memory_is_of_its_own():
    layer = nn.Linear(3, 3)
    found = host_copy(layer)
    found.weight.data.zero_()
    assert layer.weight.any() and torch.equal(found.bias, layer.bias)
