"""One iteration: its cost, exact gradient accumulation, and a failed turn that changes nothing."""

import gc

import pytest
import torch
from refusals import refused
from torch.overrides import TorchFunctionMode
from toy_world import BATCH, GRID, World

from tdmvid.config import OptimConfig
from tdmvid.distill.fisher import Fisher
from tdmvid.distill.iteration import GradedPath
from tdmvid.distill.tdm import TDM
from tdmvid.distill.trajectories import Place, pick_k
from tdmvid.parallel.rng import Streams


@pytest.mark.parametrize("rollout", ["stop", "full", "stream"])
def test_a_further_micro_batch_keeps_its_state_and_its_prediction_alone(rollout, monkeypatch):
    latents = torch.Size((BATCH, 2))

    def largest(accumulation):
        counts, loss = [], TDM.loss
        world = World(TDM(rollout=rollout), accumulation=accumulation)
        world.iterate(0, micros=accumulation)

        def counted(self, *args):
            gc.collect()
            alive = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
            counts.append(
                len({x.untyped_storage().data_ptr() for x in alive if x.shape == latents})
            )
            return loss(self, *args)

        monkeypatch.setattr(TDM, "loss", counted)
        world.iterate(1, micros=accumulation)
        monkeypatch.undo()
        return max(counts)

    assert largest(6) - largest(2) == 4 * 2


def test_a_full_rollout_costs_8_forwards_and_2_backwards():
    world = World(TDM(rollout="full"))
    assert world.iterate().failed is None
    assert world.forwards() == 8 and world.backwards() == 2


@pytest.mark.slow
def test_a_stopped_rollout_costs_k_dependent_calls_and_6_5_on_average():
    world, costs = World(TDM(rollout="stop")), []
    for step in range(200):
        before = world.forwards()
        world.iterate(step)
        k = int(pick_k(Place(step), world.objective, GRID, 1, Streams(0)))
        costs.append(world.forwards() - before)
        assert costs[-1] == (4 - k) + 5
    assert set(costs) == {5, 6, 7, 8} and sum(costs) / 200 == pytest.approx(6.5, abs=0.25)
    assert world.backwards() == 2 * 200


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_each_further_fake_update_costs_one_forward_and_one_backward(updates):
    world = World(TDM(rollout="full", fake_updates=updates))
    world.iterate()
    assert world.forwards() == 7 + updates and world.backwards() == 1 + updates
    assert world.engines["fake"].updates == updates and world.engines["student"].updates == 1


def test_a_shared_draw_saves_one_forward():
    world = World(TDM(rollout="full", draws="shared"))
    assert world.iterate().failed is None
    assert world.forwards() == 7 and world.backwards() == 2


def test_one_call_of_the_fake_gives_both_turns_the_gradients_of_a_call_each(monkeypatch):
    """The reference makes two calls before the fake is updated, so the weights of the fake are
    fixed where the call is made twice.
    """
    moves = {}
    for once in (True, False):
        world = World(TDM(rollout="full", draws="shared"))
        before = {role: world.weights(role) for role in world.engines}
        if not once:
            monkeypatch.setattr("tdmvid.distill.iteration.AskedOnce", lambda denoiser: denoiser)
            world.engines["fake"].config = OptimConfig(lr=1e-30, clip=0, algorithm="sgd")
        world.iterate()
        assert world.forwards() == (7 if once else 8)
        moves[once] = {role: world.weights(role) - weights for role, weights in before.items()}
    assert moves[True]["student"].norm() > 0 and torch.equal(
        moves[True]["student"], moves[False]["student"]
    )
    assert moves[True]["fake"].norm() > 0


def test_the_fake_moves_alike_with_a_draw_of_its_own_and_with_a_shared_one():
    moves = {}
    for draws in ("own", "shared"):
        world = World(TDM(rollout="full", draws=draws))
        before = {role: world.weights(role) for role in world.engines}
        world.iterate()
        moves[draws] = {role: world.weights(role) - weights for role, weights in before.items()}
    assert torch.equal(moves["own"]["fake"], moves["shared"]["fake"])
    assert not torch.allclose(moves["own"]["student"], moves["shared"]["student"])


@pytest.mark.parametrize("settings", [{"fake_updates": 2}, {"kind": "fisher"}])
def test_a_draw_that_cannot_serve_both_turns_is_refused(settings):
    kind = {"fisher": Fisher}.get(settings.pop("kind", "tdm"), TDM)
    with refused("objective.draws='shared'", "draws='own'"):
        kind(draws="shared", **settings)


def test_no_guidance_saves_one_forward():
    world = World(TDM(rollout="full"), cfg=1.0)
    world.iterate()
    assert world.forwards() == 7


@pytest.mark.parametrize("draws", ["own", "shared"])
def test_two_micro_batches_average_the_moves_of_two_iterations(draws):
    """The fake is fixed, so the student is compared with the same fake in all three cases."""
    objective = TDM(rollout="full", draws=draws)
    moves = {}
    for name, micros, accumulation, first in (
        ("both", 2, 2, 0),
        ("first", 1, 1, 0),
        ("second", 1, 1, 1),
    ):
        world = World(objective, accumulation=accumulation)
        world.engines["fake"].config = OptimConfig(lr=1e-30, clip=0, algorithm="sgd")
        before = world.weights("student")
        world.iterate(micros=micros, first_stream=first)
        moves[name] = world.weights("student").double() - before.double()
    expected = (moves["first"] + moves["second"]) / 2
    assert (moves["first"] - moves["second"]).norm() > 0.1 * expected.norm() > 0
    torch.testing.assert_close(moves["both"], expected, rtol=1e-3, atol=1e-7)


def test_the_fake_accumulates_over_micro_batches_too():
    """Uses a full rollout; with `stop`, the k of a micro-batch depends on its index on the rank."""
    moves = {}
    for name, micros, accumulation, first in (
        ("both", 2, 2, 0),
        ("first", 1, 1, 0),
        ("second", 1, 1, 1),
    ):
        world = World(TDM(rollout="full"), accumulation=accumulation)
        before = world.weights("fake")
        world.iterate(micros=micros, first_stream=first)
        moves[name] = world.weights("fake").double() - before.double()
    torch.testing.assert_close(
        moves["both"], (moves["first"] + moves["second"]) / 2, rtol=1e-3, atol=1e-7
    )


class Poisoned(TDM):
    """TDM with a NaN as the loss of one role."""

    def loss(self, role, roles, draw, cond):
        terms = super().loss(role, roles, draw, cond)
        return terms | {"loss": terms["loss"] * float("nan")} if role == type(self).bad else terms


@pytest.mark.parametrize("bad, still", [("fake", {"fake", "student"}), ("student", {"student"})])
def test_a_loss_that_is_not_finite_steps_nothing_from_there_on(bad, still):
    world = World(type("Bad", (Poisoned,), {"bad": bad})(rollout="full"))
    before = {role: world.weights(role) for role in world.networks}
    outcome = world.iterate()
    assert outcome.failed == bad
    assert {role for role in before if torch.equal(world.weights(role), before[role])} == still
    world.objective = TDM(rollout="full")
    assert world.iterate(1).failed is None and world.weights("student").isfinite().all()


def test_a_failed_turn_leaves_no_gradient_behind():
    poisoned, clean = (
        World(type("Bad", (Poisoned,), {"bad": "fake"})(rollout="full")),
        World(TDM(rollout="full")),
    )
    poisoned.iterate(0)
    poisoned.objective = clean.objective
    poisoned.iterate(1), clean.iterate(1)
    for role in clean.networks:
        assert torch.equal(poisoned.weights(role), clean.weights(role))


def test_the_kept_graph_gives_the_gradient_of_a_recomputed_call(monkeypatch):
    moves = {}
    for keep in (True, False):
        world = World(TDM(rollout="full"))
        original = GradedPath.__init__
        with monkeypatch.context() as patch:
            patch.setattr(
                GradedPath,
                "__init__",
                lambda self, path, roles, keep, k=keep, init=original: init(self, path, roles, k),
            )
            before = world.weights("student")
            world.iterate()
        moves[keep] = world.weights("student") - before
        assert world.forwards() == (8 if keep else 9)
    assert moves[True].norm() > 0 and torch.equal(moves[True], moves[False])


class Waits(TorchFunctionMode):
    """Record calls that copy a value to the host, where the host would wait for a GPU."""

    FETCH = {
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "is_nonzero",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
    }

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in self.FETCH:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rollout", ["stop", "stream"])
@pytest.mark.parametrize("fake_updates", [1, 3])
def test_the_host_waits_once_for_every_turn_and_once_for_the_scalars(fake_updates, rollout):
    world = World(TDM(rollout=rollout, fake_updates=fake_updates))
    world.iterate(0)
    with Waits() as waits:
        world.iterate(1)
    assert waits.names.count("tolist") == fake_updates + 2
    # k of a rollout that stops is drawn on the host
    others = [name for name in waits.names if name != "tolist"]
    assert others == ["__int__"] * (rollout == "stop")


def test_an_iteration_is_a_function_of_seed_and_step():
    outcomes = [World(TDM()).iterate(7).scalars for _ in range(2)]
    assert outcomes[0] == outcomes[1] != World(TDM()).iterate(8).scalars
    assert {"loss/fake", "loss/student", "ess/fake", "grad_norm/student"} <= outcomes[0].keys()
