"""Build a discriminator from any family: the first half of its network, with heads on its features.

The network is frozen and the heads are trained.

The discriminator is conditioned on tau, and on K if K is drawn from a set, but not on the prompt:
the network is called with the null condition, so real clips need no captions.

Shapes: B batch, N tokens or positions, W channels of a tap. Logits are [B].
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..diffusion.denoiser import STEPS, Cond, step_level
from .pipeline import PipelineBackbone
from .taps import Tap

WIDTH = 256
"""Hidden channels of a head."""
FREQUENCIES = 4
"""Number of sine and cosine pairs that encode tau, and K."""


class Head(nn.Module):
    """Maps the features of one tap to a logit.

    Two layers act on every token, modulated by tau and K; the logit is the mean over tokens.

    Args:
        features: W, channels of the tap.
        width: Hidden channels.
    """

    def __init__(self, features: int, width: int = WIDTH):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(features), nn.Linear(features, width)
        self.modulation, self.outer = nn.Linear(4 * FREQUENCIES, 2 * width), nn.Linear(width, 1)

    def forward(self, features: Tensor, levels: Tensor) -> Tensor:
        """Return logits [B] for features [B, N, W] and levels [B, 4 * FREQUENCIES]."""
        scale, shift = self.modulation(levels)[:, None].chunk(2, -1)
        return self.outer(silu(self.inner(self.norm(features)) * (1 + scale) + shift)).mean((1, 2))


class Discriminator(nn.Module):
    """The kept half of a network with a head on each of its taps.

    Args:
        network: The trunk, see `Backbone.discriminator_trunk`.
        taps: The blocks that give features.
        seed: Seed of the heads' initial weights.
    """

    def __init__(self, network: nn.Module, taps: list[Tap], *, seed: int):
        super().__init__()
        self.network = network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = nn.ModuleList(Head(tap.width) for tap in taps)
        self.heads = heads.to(next(network.parameters()).device)
        self._features: dict[int, Tensor] | None = None  # features of the current call
        for number, tap in enumerate(taps):
            tap.block.register_forward_hook(partial(self._keep, number, tap.index))

    def forward(
        self, *, tau: Tensor, steps: Tensor | None, return_dict: bool = False, **inputs
    ) -> tuple[Tensor]:
        """Return logits, averaged over the heads.

        Args:
            tau: Times, [B].
            steps: Step counts K, [B]; None if K is not a condition.
            return_dict: Ignored.
            inputs: Keyword arguments of the network.

        Returns:
            A tuple of one tensor, the logits [B].
        """
        self._features = {}
        self.network(**inputs, return_dict=False)
        features, self._features = self._features, None
        level = torch.zeros_like(tau) if steps is None else step_level(steps)
        levels = torch.cat([_waves(tau), _waves(level)], 1)
        with torch.autocast(tau.device.type, enabled=False):
            logits = [
                head(_tokens(features[number]).float(), levels)
                for number, head in enumerate(self.heads)
            ]
        return (torch.stack(logits).mean(0),)

    def _keep(self, number: int, index: int, module: nn.Module, args: tuple, out) -> None:
        # checkpointing runs blocks again in the backward pass: nothing to collect then
        if self._features is not None:
            self._features[number] = out[index] if isinstance(out, tuple) else out


class NetworkDiscriminator:
    """A Discriminator (or an engine around it) as a function (x_tau, tau, cond) -> logits [B].

    Args:
        backbone: The family.
        network: The Discriminator or its engine.
        null: Condition of the empty prompt, one row.
    """

    def __init__(self, backbone: PipelineBackbone, network, null: Cond):
        self.backbone, self.network, self.null = backbone, network, null
        self.evaluated = 0
        """Number of samples evaluated so far."""

    def __call__(self, x_tau: Tensor, tau: Tensor, cond: Cond) -> Tensor:
        """Return logits [B] for x_tau [B, ...] at tau [B]; only K is read from `cond`."""
        self.evaluated += len(x_tau)
        return self.backbone.call(
            self.network, x_tau, tau, self.null.expand(len(x_tau)), tau=tau, steps=cond.get(STEPS)
        )


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2) if features.dim() == 4 else features


def _waves(level: Tensor) -> Tensor:
    phase = level[:, None] * (math.pi / 2) * 2.0 ** torch.arange(FREQUENCIES, device=level.device)
    return torch.cat([phase.sin(), phase.cos()], 1)
