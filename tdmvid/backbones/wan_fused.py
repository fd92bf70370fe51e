"""Wan blocks that avoid copying activations to float32 and back.

diffusers computes norms, modulation and residuals in float32, one tensor at a time. Here each
kernel reads and writes the activations' dtype and computes in float32 internally. The modulation
parameters stay float32. The blocks use the parameters of the diffusers blocks under the same names.

Shapes: B batch, L tokens, T text tokens, D channels.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor
from torch.nn.functional import layer_norm

from .fused import add_gated, as_class, modulate
from .wan_parallel import Attention


def fuse(network: WanTransformer3DModel) -> None:
    """Replace blocks and attention processors in place. Parameters keep their names."""
    attention = Attention()
    for name, block in list(network.blocks.named_children()):
        if isinstance(block, FusedBlock):
            continue
        fused = as_class(FusedBlock, block)
        for norm in ("norm1", "norm2", "norm3"):
            own = fused.get_submodule(norm)
            if isinstance(own, FP32LayerNorm):
                fused.add_module(norm, as_class(_NormInItsDtype, own))
        network.blocks._modules[name] = fused
        for attn in (fused.attn1, fused.attn2):
            attn.set_processor(attention)


class _NormInItsDtype(FP32LayerNorm):
    """A layer norm with input and output in the same dtype, computed in float32."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            weight, bias = (
                None if p is None else p.to(inputs.dtype) for p in (self.weight, self.bias)
            )
            return layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


class FusedBlock(WanTransformerBlock):
    """A Wan block that computes modulation and residuals in one pass each."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return the new video tokens, [B, L, D].

        Args:
            hidden_states: Video tokens, [B, L, D].
            encoder_hidden_states: Text tokens, [B, T, D].
            temb: Projected time embedding, [B, 6, D], or [B, L, 6, D] with one time per token.
            rotary_emb: Cosines and sines, [1, L, 1, D / heads] each.
        """
        x = hidden_states
        if temb.ndim == 3:
            temb = temb[:, None]
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            self.scale_shift_table + temb.float()
        ).unbind(2)  # each [B, 1, D] or [B, L, D], float32
        normed = modulate(self.norm1(x), scale, shift)
        x = add_gated(x, gate, self.attn1(normed, None, None, rotary_emb))
        x = x + self.attn2(self.norm2(x), encoder_hidden_states, None, None)
        normed = modulate(self.norm3(x), ff_scale, ff_shift)
        return add_gated(x, ff_gate, self.ffn(normed))
