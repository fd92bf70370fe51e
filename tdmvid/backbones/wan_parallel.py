"""Wan attention with our own processor, and sequence parallelism.

The video tokens are split before the first block and gathered after the output projection. Every
layer in between works per token, cross-attention to text included, except self-attention.

Shapes: B batch, L video tokens, P ranks, n = ceil(L / P) tokens per rank, H heads, D channels of a
head.
"""

from __future__ import annotations

from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn

from .base import TokenSharing
from .fused import rotate

TEXT_LENGTH = 512  # as in Wan's training; diffusers' network separates image and text by it


class Attention:
    """Attention processor: exact self-attention or cross-attention, on one or several ranks.

    Args:
        sharing: The ranks that share a sequence; None if each rank has all tokens.
    """

    # the kernel, set by diffusers' `set_attention_backend`
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
        """Return this rank's tokens after attention to all tokens of all ranks, or to the text.

        Args:
            attn: The diffusers attention module.
            hidden_states: This rank's video tokens, [B, n, H D].
            encoder_hidden_states: Image tokens, if the model has an image encoder, and text tokens
                [B, T, H D] for cross-attention; None for self-attention.
            attention_mask: Must be None.
            rotary_emb: Cosines and sines [1, L, 1, D] of all video tokens, or None.

        Returns:
            [B, n, H D].
        """
        assert attention_mask is None, "attention to every token"
        seen, image = hidden_states, None
        if encoder_hidden_states is not None:
            seen = encoder_hidden_states
        if attn.add_k_proj is not None:
            image, seen = seen[:, :-TEXT_LENGTH], seen[:, -TEXT_LENGTH:]
        value = attn.to_v(seen)
        # under autocast a norm returns float32 on a GPU, but kernels need equal dtypes
        query = attn.norm_q(attn.to_q(hidden_states)).to(value.dtype)
        key = attn.norm_k(attn.to_k(seen)).to(value.dtype)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, L, h, D]
            if rotary_emb is not None:
                cos, sin = (x[0, :, 0] for x in rotary_emb)  # from [1, L, 1, D], all tokens
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            out: Tensor = dispatch_attention_fn(q, k, v, backend=self._attention_backend)
            return out

        if self.sharing is None or encoder_hidden_states is not None:
            out = whole(query, key, value)
        else:
            out = self.sharing.attend(query, key, value, self.length, whole)
        if image is not None:
            value = attn.add_v_proj(image)
            key = attn.norm_added_k(attn.add_k_proj(image)).to(value.dtype)
            out = out + whole(query, *(x.unflatten(2, (attn.heads, -1)) for x in (key, value)))
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class SharedTokens(Attention):
    """Attention processor with the hooks that split and gather the tokens."""

    def __init__(self, sharing: TokenSharing):
        super().__init__(sharing)
        self.group = sharing

    def cut(self, block: WanTransformerBlock, args: tuple) -> tuple:
        """Replace all tokens [B, L, H D] by this rank's; a pre-hook of the first block."""
        hidden_states, *others = args
        self.length = hidden_states.shape[1]
        return self.group.shard(hidden_states), *others

    def cut_times(self, embedder: nn.Module, args: tuple, out: tuple) -> tuple:
        """Replace embeddings of every token's time [B, L, ...] by this rank's; keep one per sample.

        A hook of the embedder of times, text and images.
        """
        per_token, per_block, *others = out
        if per_token.ndim == 2:
            return out
        return self.group.shard(per_token), self.group.shard(per_block), *others

    def join(self, projection: nn.Linear, args: tuple, out: Tensor) -> Tensor:
        """Gather the tokens of all ranks, [B, L, ...]; a hook of the output projection."""
        return self.group.gather(out, self.length)


def share_tokens(network: WanTransformer3DModel, sharing: TokenSharing) -> None:
    """Make every later call of `network` split its tokens over ranks.

    Inputs and outputs stay whole and equal on all ranks.

    Args:
        network: Modified in place: hooks and attention processors are added.
        sharing: The ranks that share a sequence.
    """
    tokens = SharedTokens(sharing)
    network.condition_embedder.register_forward_hook(tokens.cut_times)
    network.blocks[0].register_forward_pre_hook(tokens.cut)
    network.proj_out.register_forward_hook(tokens.join)
    for block in network.blocks:
        block.attn1.set_processor(tokens)
