"""CogVideoX attention with a selectable kernel, and sequence parallelism.

The joint sequence of text and video tokens is split before the first block and gathered after the
output projection. Every layer in between works per token, except attention.

Shapes: B batch, T text tokens, V video tokens, L = T + V, P ranks, n = ceil(L / P) tokens per rank,
H heads, D channels of a head. A rank's n tokens are passed on as diffusers' pair (video, text), see
joint_tokens.py.
"""

from __future__ import annotations

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .attention import BACKENDS
from .base import TokenSharing
from .fused import rotate
from .joint_tokens import JointTokens

BLOCK_ARGUMENTS = (
    "hidden_states",
    "encoder_hidden_states",
    "temb",
    "image_rotary_emb",
    "attention_kwargs",
)
"""Positional arguments of a CogVideoX block, in order."""


class JointAttention:
    """Attention processor: exact attention over text and video tokens, on one or several ranks.

    Args:
        shared: The tokens that ranks share; None if each rank has all tokens.
    """

    def __init__(self, shared: JointTokens | None = None):
        self.shared = shared
        self.kernel, self.float32 = AttentionBackendName.NATIVE, False

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return this rank's (video, text) tokens after attention to all tokens of all ranks.

        Args:
            attn: The diffusers attention module.
            hidden_states: This rank's video tokens, [B, v, H D].
            encoder_hidden_states: This rank's text tokens, [B, t, H D].
            attention_mask: Must be None.
            image_rotary_emb: Cosines and sines [V, D] of all video tokens, or None.
        """
        assert attention_mask is None, "CogVideoX attends to every token"
        own_text = encoder_hidden_states.shape[1]
        text = self.shared.text if self.shared else own_text
        tokens = torch.cat([encoder_hidden_states, hidden_states], 1)
        query, key, value = (
            project(tokens).unflatten(2, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            # under autocast a norm returns float32 on a GPU, but kernels need equal dtypes
            query, key = attn.norm_q(query).to(value.dtype), attn.norm_k(key).to(value.dtype)

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, L, h, D]
            if image_rotary_emb is not None:  # text tokens are not rotated
                q, k = (rotate(x, *image_rotary_emb, text=text) for x in (q, k))
            return self._attend(q, k, v)

        if self.shared is None:
            out = whole(query, key, value)
        else:
            out = self.shared.sharing.attend(query, key, value, self.shared.length, whole)
        out = attn.to_out[1](attn.to_out[0](out.flatten(2)))
        return out[:, own_text:], out[:, :own_text]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of [B, L, h, D] with the selected kernel and dtype."""
        if not self.float32:
            return dispatch_attention_fn(q, k, v, backend=self.kernel)
        with torch.autocast(q.device.type, enabled=False):  # autocast would cast back
            out = dispatch_attention_fn(q.float(), k.float(), v.float(), backend=self.kernel)
        return out.to(v.dtype)


def share_tokens(network: CogVideoXTransformer3DModel, sharing: TokenSharing) -> None:
    """Make every later call of `network` split its tokens over ranks.

    Inputs and outputs stay whole and equal on all ranks.

    Args:
        network: Modified in place: hooks and attention processors are added.
        sharing: The ranks that share a sequence.
    """
    shared = JointTokens(sharing)

    def cut(block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        kwargs = dict(zip(BLOCK_ARGUMENTS, args, strict=False)) | kwargs
        text, video = shared.split(kwargs["encoder_hidden_states"], kwargs["hidden_states"])
        return (), kwargs | {"hidden_states": video, "encoder_hidden_states": text}

    def join(projection: nn.Module, args: tuple, video: Tensor) -> Tensor:
        return shared.gather_video(video)

    network.transformer_blocks[0].register_forward_pre_hook(cut, with_kwargs=True)
    network.proj_out.register_forward_hook(join)
    network.set_attn_processor(JointAttention(shared))


def set_attention(network: CogVideoXTransformer3DModel, kernel: str) -> None:
    """Select the attention kernel of `network`; works with shared tokens too.

    diffusers' own switch to xformers would drop the rotary embedding. On a CPU, the float32
    backward pass is several times faster than the bfloat16 kernel's on short sequences.

    Args:
        network: Modified in place.
        kernel: A value of `CogVideoX.kernels`.
    """
    if kernel == "sdpa":
        return
    processors = network.attn_processors.values()
    if not any(isinstance(processor, JointAttention) for processor in processors):
        network.set_attn_processor(JointAttention())
    for processor in network.attn_processors.values():
        if kernel == "float32":
            processor.float32 = True
        else:
            processor.kernel = BACKENDS[kernel]
