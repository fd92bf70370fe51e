"""Muon for the matrices of the transformer's blocks, AdamW for all else, behind one face.

Muon orthogonalises a matrix's momentum before the step (torch.optim.Muon). Its
advantage over AdamW alone has not been established on this model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class MuonAndAdamW:
    """Two optimisers that step together; `set_lr` scales the peak rate of each by one factor."""

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
        """Set every rate to `factor` times its peak."""
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = factor * self.peaks[name]

    def step(self) -> None:
        """One step of both."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients of both."""
        for part in self.parts.values():
            part.zero_grad()

    def state_dict(self) -> dict:
        """The states of both, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` gave."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def for_transformer(
    model: nn.Module, *, muon_lr: float, lr: float, weight_decay: float
) -> MuonAndAdamW:
    """Muon on the attention and feed-forward matrices of `transformer_blocks`, AdamW on the rest of
    the model.
    """
    matrices, others = [], []
    for name, p in model.named_parameters():
        inner = "transformer_blocks" in name and (".attn1.to_" in name or ".ff." in name)
        (matrices if inner and p.ndim == 2 else others).append(p)
    return MuonAndAdamW(matrices, others, muon_lr=muon_lr, lr=lr, weight_decay=weight_decay)
