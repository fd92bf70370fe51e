"""Wan's attention by our own processor, and its tokens spread over ranks.

The video tokens are cut before the first block and put together behind the output projection.
In between every layer works token by token, attention to text as well, except self-attention.

Shapes: B batch, L video tokens, n = ceil(L / P) tokens of a rank, H heads, D channels of a head.
"""

from __future__ import annotations

from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn

from .base import TokenSharing
from .fused import rotate


class Attention:
    """Replaces the library's attention processor: exact attention to video or text, over video
    tokens that may lie on several ranks.
    """

    # the kernel: the library's `set_attention_backend` writes it into its processors
    _attention_backend = None

    def __init__(self, sharing: TokenSharing | None = None):
        self.sharing, self.length = sharing, 0

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return this rank's tokens [B, n, H D] after attention to all tokens of all ranks, or to
        the text.
        """
        assert attention_mask is None and attn.add_k_proj is None, "attention to every token"
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        value = attn.to_v(seen)
        # a norm under autocast returns float32 on a GPU: kernels and ranks want one dtype
        query = attn.norm_q(attn.to_q(hidden_states)).to(value.dtype)
        key = attn.norm_k(attn.to_k(seen)).to(value.dtype)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, L, h, D]
            if rotary_emb is not None:
                cos, sin = (x[0, :, 0] for x in rotary_emb)  # of [1, L, 1, D], the whole video
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            out: Tensor = dispatch_attention_fn(q, k, v, backend=self._attention_backend)
            return out

        if self.sharing is None or encoder_hidden_states is not None:
            out = whole(query, key, value)
        else:
            out = self.sharing.attend(query, key, value, self.length, whole)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class SharedTokens(Attention):
    """The tokens in flight, and attention to all of them."""

    def __init__(self, sharing: TokenSharing):
        super().__init__(sharing)
        self.group = sharing

    def cut(self, block: WanTransformerBlock, args: tuple) -> tuple:
        """A hook before the first block: this rank's tokens in the place of all."""
        hidden_states, *others = args
        self.length = hidden_states.shape[1]
        return self.group.shard(hidden_states), *others

    def join(self, projection: nn.Linear, args: tuple, out: Tensor) -> Tensor:
        """A hook behind the output projection: the tokens of all ranks."""
        return self.group.gather(out, self.length)


def share_tokens(network: WanTransformer3DModel, sharing: TokenSharing) -> None:
    """Make every later call of `network` compute on shares of its tokens.

    Inputs and outputs stay whole, and equal on all ranks.
    """
    tokens = SharedTokens(sharing)
    network.blocks[0].register_forward_pre_hook(tokens.cut)
    network.proj_out.register_forward_hook(tokens.join)
    for block in network.blocks:
        block.attn1.set_processor(tokens)
