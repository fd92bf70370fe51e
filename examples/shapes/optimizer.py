"""Muon for the matrices of the transformer's blocks and AdamW for everything else, behind one
interface.

Muon orthogonalizes the momentum of a matrix before the step (torch.optim.Muon). Its advantage over
AdamW alone has not been established on this model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MuonAndAdamW:
    """Two optimizers that step together.

    Args:
        matrices: Parameters for Muon.
        others: Parameters for AdamW.
        muon_lr: Peak learning rate of Muon.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        muon_lr: float,
        lr: float,
        weight_decay: float,
    ) -> None:
        self.peaks = {"muon": muon_lr, "adamw": lr}
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                matrices,
                lr=muon_lr,
                momentum=0.95,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            "adamw": torch.optim.AdamW(
                others, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
            ),
        }

    def set_lr(self, factor: float) -> None:
        """Set the learning rates.

        Args:
            factor: Multiple of the peak learning rates.
        """
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = factor * self.peaks[name]

    def step(self) -> None:
        """Take a step of both optimizers."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Reset the gradients of both optimizers."""
        for part in self.parts.values():
            part.zero_grad()

    def state_dict(self) -> dict:
        """Return the states of both optimizers.

        Returns:
            States by name.
        """
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore the states of both optimizers.

        Args:
            state: Result of `state_dict`.
        """
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def for_transformer(
    model: nn.Module, *, muon_lr: float, lr: float, weight_decay: float
) -> MuonAndAdamW:
    """Use Muon for the attention and feed-forward matrices of `transformer_blocks`, and AdamW for
    the rest.

    Args:
        model: The trained model.
        muon_lr: Peak learning rate of Muon.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of both.

    Returns:
        The optimizer.
    """
    matrices, others = [], []
    for name, p in model.named_parameters():
        inner = "transformer_blocks" in name and (".attn1.to_" in name or ".ff." in name)
        (matrices if inner and p.ndim == 2 else others).append(p)
    return MuonAndAdamW(matrices, others, muon_lr=muon_lr, lr=lr, weight_decay=weight_decay)
