"""CogVideoX blocks with fused modulation and residuals.

They use the parameters of the diffusers blocks under the same names.

Shapes: B batch, T text tokens, V video tokens, L tokens, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .cogvideox_parallel import JointAttention
from .fused import add_gated, as_class, modulate


def fuse(network: CogVideoXTransformer3DModel) -> None:
    """Replace blocks and attention processors in place. Parameters keep their names."""
    for name, block in list(network.transformer_blocks.named_children()):
        if not isinstance(block, FusedBlock):
            network.transformer_blocks._modules[name] = _fused_block(block)
    network.set_attn_processor(JointAttention())


def _fused_block(block: nn.Module) -> FusedBlock:
    fused = as_class(FusedBlock, block)
    for name in ("norm1", "norm2"):
        zero = as_class(_FusedLayerNormZero, fused.get_submodule(name))
        zero.norm = as_class(_ModulatedNorm, zero.norm)
        fused.add_module(name, zero)
    return fused


class _ModulatedNorm(nn.LayerNorm):
    """A layer norm with modulation: norm(x) (1 + scale) + shift."""

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        """Return [B, L, D] for x [B, L, D], scale and shift [B, D]."""
        if len(x) > 1 or not self.elementwise_affine or torch.is_autocast_enabled(x.device.type):
            return modulate(super().forward(x), scale[:, None], shift[:, None])
        scale = 1 + scale[0]  # batch 1: fold the modulation into the norm's weight and bias
        return layer_norm(
            x, self.normalized_shape, self.weight * scale, self.bias * scale + shift[0], self.eps
        )


class _FusedLayerNormZero(CogVideoXLayerNormZero):
    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(self.silu(temb)).chunk(
            6, 1
        )
        return (
            self.norm(hidden_states, scale, shift),
            self.norm(encoder_hidden_states, text_scale, text_shift),
            gate[:, None],
            text_gate[:, None],
        )


class FusedBlock(CogVideoXBlock):
    """A CogVideoX block that computes each residual in one pass."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the new (video [B, V, D], text [B, T, D]) tokens; temb is [B, D]."""
        video, text = hidden_states, encoder_hidden_states
        lengths = [text.shape[1], video.shape[1]]
        normed, normed_text, gate, text_gate = self.norm1(video, text, temb)
        attended, attended_text = self.attn1(
            hidden_states=normed,
            encoder_hidden_states=normed_text,
            image_rotary_emb=image_rotary_emb,
            **(attention_kwargs or {}),
        )
        video = add_gated(video, gate, attended)
        text = add_gated(text, text_gate, attended_text)
        normed, normed_text, gate, text_gate = self.norm2(video, text, temb)
        fed_text, fed = self.ff(torch.cat([normed_text, normed], 1)).split(lengths, 1)
        return add_gated(video, gate, fed), add_gated(text, text_gate, fed_text)
