"""Training engine of one process: resuming, clipping, averaging, and refused checkpoints."""

import copy
import math

import pytest
import torch
from ranks import save
from refusals import refused
from torch import nn

from tdmvid.config import OptimConfig
from tdmvid.parallel.engine import TorchEngine
from tdmvid.parallel.optim import LossScale


def network(seed=0, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


def engine(seed=0, width=5, **changes):
    config = OptimConfig(
        **{"lr": 1e-2, "schedule": "cosine", "warmup": 2, "betas": (0.9, 0.99)} | changes
    )
    return TorchEngine(network(seed, width), config, total_steps=8, ema=0.9)


def advance(role, steps):
    for step in steps:
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        role.backward(role(x).square().mean())
        role.step()


def state(role):
    return {
        **role.weights(averaged=False),
        **{"ema." + name: p for name, p in role.weights(averaged=True).items()},
    }


def assert_bitwise(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_continues_bit_for_bit(tmp_path):
    whole = engine()
    advance(whole, range(6))
    first = engine()
    advance(first, range(3))
    save(first, tmp_path / "at3")
    second = engine(seed=1)
    second.load(tmp_path / "at3")
    assert second.updates == 3
    advance(second, range(3, 6))
    assert_bitwise(state(second), state(whole))


def test_only_trainable_tensors_are_saved_and_loaded(tmp_path):
    module = network()
    module[0].requires_grad_(False)
    role = TorchEngine(module, OptimConfig(), total_steps=1)
    assert list(role.weights(averaged=False)) == ["2.weight", "2.bias"]
    save(role, tmp_path / "a")
    other = network(seed=1)
    other[0].requires_grad_(False)
    frozen = other[0].weight.clone()
    TorchEngine(other, OptimConfig(), total_steps=1).load(tmp_path / "a")
    assert torch.equal(other[0].weight, frozen) and torch.equal(other[2].weight, module[2].weight)


def test_a_foreign_checkpoint_is_refused_and_changes_nothing(tmp_path):
    save(engine(width=4), tmp_path / "narrow")
    role = engine()
    before = state(role)
    with refused("narrow"):
        role.load(tmp_path / "narrow")
    assert_bitwise(state(role), before)


def test_a_checkpoint_without_an_average_is_refused_by_a_role_that_keeps_one(tmp_path):
    save(TorchEngine(network(), OptimConfig(), total_steps=1), tmp_path / "plain")
    with refused(tmp_path / "plain", "average"):
        engine().load(tmp_path / "plain")


def gradient_step(clip, scale=100.0):
    """Return the change of one SGD step with lr 1 on a steep loss, and the result of the step."""
    role = TorchEngine(network(), OptimConfig(lr=1.0, clip=clip, algorithm="sgd"), total_steps=1)
    before = role.weights(averaged=False)
    role.backward(scale * role(torch.ones(4, 3)).sum())
    result = role.step()
    move = [before[name] - p for name, p in role.weights(averaged=False).items()]
    return torch.cat([m.flatten() for m in move]), result


def test_the_clip_limits_the_norm_and_keeps_the_direction():
    free, unclipped = gradient_step(clip=0)
    bound, clipped = gradient_step(clip=0.5)
    assert unclipped.grad_norm == pytest.approx(free.norm().item(), rel=1e-4) and free.norm() > 100
    assert clipped.grad_norm == unclipped.grad_norm
    assert bound.norm().item() == pytest.approx(0.5, rel=1e-3)
    torch.testing.assert_close(bound / bound.norm(), free / free.norm(), atol=1e-4, rtol=0)


def test_a_gradient_below_the_clip_is_left_alone():
    torch.testing.assert_close(
        gradient_step(clip=10, scale=1e-3)[0], gradient_step(clip=0, scale=1e-3)[0]
    )


def test_the_average_follows_its_formula():
    role = engine()
    average = role.weights(averaged=False)
    for step in range(4):
        advance(role, [step])
        now = role.weights(averaged=False)
        average = {name: 0.9 * average[name] + 0.1 * now[name] for name in now}
    for name, tensor in role.weights(averaged=True).items():
        torch.testing.assert_close(tensor, average[name])
        assert not torch.equal(tensor, now[name])


def test_micro_batches_average_their_gradients():
    x = torch.randn(8, 3)
    whole = TorchEngine(network(), OptimConfig(lr=1.0, clip=0, algorithm="sgd"), total_steps=1)
    halves = TorchEngine(
        network(), OptimConfig(lr=1.0, clip=0, algorithm="sgd"), total_steps=1, accumulation=2
    )
    whole.backward(whole(x).square().mean())
    for part in x.chunk(2):
        halves.backward(halves(part).square().mean())
    whole.step(), halves.step()
    for name, tensor in whole.weights(averaged=False).items():
        torch.testing.assert_close(halves.weights(averaged=False)[name], tensor)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    role = engine()
    advance(role, range(2))
    before, optimizer = state(role), copy.deepcopy(role.optimizer.state_dict())
    role.backward(value * role(torch.ones(4, 3)).sum())
    result = role.step()
    assert not result.applied and role.updates == 2
    assert_bitwise(state(role), before)
    for index, moments in optimizer["state"].items():
        assert all(
            torch.equal(moments[name], role.optimizer.state_dict()["state"][index][name])
            for name in moments
        )
    advance(role, [2])
    assert role.updates == 3 and all(t.isfinite().all() for t in state(role).values())


def test_a_skipped_step_forgets_its_gradient():
    role, clean = engine(), engine()
    role.backward(role(torch.ones(4, 3)).sum())
    assert not role.step(skip=True).applied
    advance(role, [0]), advance(clean, [0])
    assert_bitwise(state(role), state(clean))


def test_the_rate_warms_up_and_falls_by_its_schedule():
    linear = OptimConfig(lr=1.0, schedule="linear")
    assert [linear.rate(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    cosine = OptimConfig(lr=1.0, schedule="cosine")
    assert [round(cosine.rate(step, 4), 6) for step in (0, 2, 4)] == [1.0, 0.5, 0.0]
    warm = OptimConfig(lr=1.0, warmup=3)
    assert [warm.rate(step, 100) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    "changes, fact",
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"clip": -1.0}, "clip=-1.0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"betas": (0.9, 1.0)}, "betas=[0.9, 1.0]"),
    ],
)
def test_a_bad_setting_is_refused_with_its_value(changes, fact):
    with refused(fact):
        OptimConfig(**changes)


def test_a_loss_scale_comes_down_to_one_and_explains_no_overflow_there():
    scale = LossScale(4.0, patience=2)
    assert [scale.update(False) for _ in range(3)] == [True, True, False] and scale.value == 1
    assert [scale.update(True) for _ in range(3)] == [False] * 3 and scale.value == 2
    assert LossScale.of(torch.float32) == LossScale.of(torch.bfloat16) == LossScale(
        1.0
    ) and not LossScale.of(torch.bfloat16).update(False)
