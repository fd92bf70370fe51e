"""Every setting of a method has an effect: it changes the result of an iteration in combination
with any other setting, or is refused.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch

from tdmvid.backbones.gaussian import Critic, ExactDenoiser, Mixture, VelocityNetwork
from tdmvid.diffusion.denoiser import Cond, Guided
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.process import RectifiedFlow
from tdmvid.distill.iteration import iterate
from tdmvid.distill.objective import Roles, objectives
from tdmvid.parallel.engine import StepResult
from tdmvid.parallel.rng import Streams

VALUES = {
    "cfg": (3.0,),
    "match": ("clean",),
    "solver": ("dpm++", "renoise"),
    "segments": ("to_terminal", "everywhere"),
    "randmid": (True,),
    "margin_low": (0.2,),
    "margin_high": (0.2,),
    "fresh_noise": (0.2,),
    "distance": ("huber_vector", "l2"),
    "huber_c": (0.5,),
    "fake_target": ("exact", "x0_hat"),
    "importance": ("sum",),
    "fake_weight": ("velocity",),
    "snr_ceiling": (0.5,),
    "fake_updates": (2,),
    "fake_trajectories": ("fresh", "same"),
    "draws": ("shared",),
    "rollout": ("full",),
}


def same_by_meaning(objective, pair):
    """Of two lower limits of tau only the larger one matters. A draw from the clean prediction is
    the same for both settings, and its exact target is x0_hat.
    """
    names = {name for name, _ in pair}
    return names == {"margin_low", "fresh_noise"} or (
        objective.from_clean
        and ("fake_target" in names or (dict(pair).get("solver") == "renoise" and "match" in names))
    )


def differ(some, others):
    """Return whether scalars of iterations differ by more than rounding."""
    return any(
        a.keys() != b.keys() or any(abs(a[name] - b[name]) > 1e-4 * abs(b[name]) for name in a)
        for a, b in zip(some, others)
    )


class Told(ExactDenoiser):
    """Teacher that depends on its condition, so that guidance has an effect."""

    def __call__(self, x_t, t, cond):
        return super().__call__(x_t, t, cond) + cond["shift"]


@pytest.fixture(scope="module")
def numbers():
    """Return `numbers(kind, cfg=3.0, ...)`, which gives the scalars of some iterations without
    updates, or None if the settings are refused.
    """
    process = RectifiedFlow()
    networks = [VelocityNetwork(process, width=8, seed=seed) for seed in range(3)]
    real = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    null, cond, critic = (
        Cond({"shift": torch.zeros(1, 2)}),
        Cond({"shift": torch.full((8, 2), 0.1)}),
        Critic(width=8),
    )
    told = Told(Mixture.circle(), process)
    still = SimpleNamespace(
        backward=lambda loss: None, step=lambda skip: StepResult(True, 0.0, 0.0)
    )

    def numbers(kind, **settings):
        try:
            objective = objectives()[kind](**settings)
        except ValueError:
            return None
        roles = Roles(
            networks[0], networks[1], Guided(told, null, objective.cfg), critic, lambda pick: real
        )
        return [
            iterate(
                step,
                [cond],
                (8, 2),
                objective=objective,
                roles=roles,
                engines=dict.fromkeys(("student", "fake", "discriminator"), still),
                grid=uniform(4, process),
                streams=Streams(0),
            ).scalars
            for step in range(4)
        ]

    return numbers


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(objectives()))
def test_no_setting_is_without_effect_beside_another(numbers, kind):
    default, plain = objectives()[kind](), numbers(kind)
    singles = [
        (name, value)
        for name, values in VALUES.items()
        for value in values
        if getattr(default, name) != value
    ]
    alone = {single: numbers(kind, **dict([single])) for single in singles}
    pairs = [pair for pair in itertools.combinations(singles, 2) if pair[0][0] != pair[1][0]]
    found = {
        pair: both
        for pair in pairs
        if (both := numbers(kind, **dict(pair)))
        and not same_by_meaning(objectives()[kind](**dict(pair)), pair)
    }
    assert len(found) > 50 and all(
        differ(both, alone[one]) for pair, both in found.items() for one in pair if alone[one]
    )
    allowed = [
        single
        for single in singles
        if alone[single] and not same_by_meaning(objectives()[kind](**dict([single])), (single,))
    ]
    assert allowed and all(differ(alone[single], plain) for single in allowed)
