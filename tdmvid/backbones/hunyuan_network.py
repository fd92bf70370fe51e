"""HunyuanVideo 1.5's transformer for text to video, with shapes that do not depend on the data.

diffusers sorts the text tokens of each sample by their masks, and appends masked tokens of an image
that text to video does not have. Masked tokens influence no others, and text tokens have no
positions, so neither changes the prediction. Here no call waits for masks.

Shapes: B batch, F H W latent frames, height and width, V video tokens, T text tokens, L = T + V, D
channels. On one of several ranks that share a sequence, a block has t text and v video tokens.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
    HunyuanVideo15IndividualTokenRefiner,
)
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from .base import TokenSharing
from .fused import as_class, rotate
from .joint_tokens import JointTokens


class HunyuanVideo15Transformer3DModel(diffusers.HunyuanVideo15Transformer3DModel):
    """The transformer without images. It has diffusers' class name, which saved configs state."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states_2: Tensor,
        encoder_attention_mask_2: Tensor,
        image_embeds: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Return the velocity, [B, C, F, H, W].

        Args:
            hidden_states: Noisy latents and zeros for a given image and its mask, [B, 2 C + 1, F,
                H, W].
            timestep: Timesteps, [B].
            encoder_hidden_states: Embeddings of the prompt, [B, T, D].
            encoder_attention_mask: Which of them are valid, [B, T].
            encoder_hidden_states_2: Embeddings of quoted text, [B, T, D].
            encoder_attention_mask_2: Which of them are valid, [B, T].
            image_embeds: Ignored; the stock pipeline passes zeros.
            attention_kwargs: Ignored; the stock pipeline passes None.
            return_dict: Whether to return diffusers' output class instead of a tuple.
        """
        rotary, temb = self.rope(hidden_states), self.time_embed(timestep)
        prompt = self.context_embedder(encoder_hidden_states, timestep, encoder_attention_mask)
        quoted = self.context_embedder_2(encoder_hidden_states_2)
        text = torch.cat([self._typed(quoted, 1), self._typed(prompt, 0)], 1)
        mask = torch.cat([encoder_attention_mask_2.bool(), encoder_attention_mask.bool()], 1)
        # as diffusers does: a prompt without any valid token is NaN here
        text = text.masked_fill(~mask[..., None], 0)
        x = self.x_embedder(hidden_states)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, text = self._gradient_checkpointing_func(block, x, text, temb, mask, rotary)
            else:
                x, text = block(x, text, temb, mask, rotary)
        out = self._latents(self.proj_out(self.norm_out(x, temb)), hidden_states.shape[2:])
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)

    def _typed(self, tokens: Tensor, kind: int) -> Tensor:
        """Return text tokens [B, T, D] plus the embedding of their kind."""
        kinds = torch.full(tokens.shape[:2], kind, dtype=torch.long, device=tokens.device)
        return tokens + self.cond_type_embed(kinds)

    def _latents(self, tokens: Tensor, size: torch.Size) -> Tensor:
        """Return video tokens [B, V, C p_t p p] as latents [B, C, F, H, W]."""
        frames, side = self.config.patch_size_t, self.config.patch_size
        grid = [n // p for n, p in zip(size, (frames, side, side), strict=True)]
        cells = tokens.unflatten(1, grid).unflatten(-1, (-1, frames, side, side))
        # [B, f, h, w, C, p_t, p, p] to [B, C, f, p_t, h, p, w, p]
        return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def fuse(network: HunyuanVideo15Transformer3DModel) -> None:
    """Mask keys instead of pairs of tokens, in place. Parameters keep their names.

    diffusers' masks have an entry for each pair of tokens: 2.7 GB for 121 frames of 480 x 848.
    """
    for block in network.transformer_blocks:
        block.attn.set_processor(KeyMaskedAttention())
    embedder = network.context_embedder
    embedder.token_refiner = as_class(_KeyMaskedRefiner, embedder.token_refiner)


class KeyMaskedAttention(HunyuanVideo15AttnProcessor2_0):
    """Joint attention with a mask of keys. The result of a masked token is of no use.

    Args:
        shared: The tokens that ranks share; None if each rank has all tokens.
    """

    def __init__(self, shared: JointTokens | None = None):
        super().__init__()
        self.shared = shared

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the new video tokens [B, v, D] and text tokens [B, t, D].

        Args:
            attn: The attention module.
            hidden_states: This rank's video tokens, [B, v, D].
            encoder_hidden_states: This rank's text tokens, [B, t, D].
            attention_mask: Which text tokens of all ranks are valid, [B, T].
            image_rotary_emb: Cosines and sines of all video tokens, [V, D / heads] each.
        """

        def heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, (attn.heads, -1))

        video, text = hidden_states, encoder_hidden_states
        value = heads(torch.cat([attn.add_v_proj(text), attn.to_v(video)], 1))
        query, key = (
            torch.cat([text_norm(heads(of_text(text))), norm(heads(of_video(video)))], 1)
            for text_norm, of_text, norm, of_video in (
                (attn.norm_added_q, attn.add_q_proj, attn.norm_q, attn.to_q),
                (attn.norm_added_k, attn.add_k_proj, attn.norm_k, attn.to_k),
            )
        )
        # under autocast a norm returns float32 on a GPU, but kernels need equal dtypes
        query, key = query.to(value.dtype), key.to(value.dtype)

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, L, h, D / heads]
            count = attention_mask.shape[1]
            q, k = (rotate(x, *image_rotary_emb, text=count) for x in (q, k))
            keys = pad(attention_mask.bool(), (0, v.shape[1] - count), value=True)[:, None, None]
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)

        if self.shared is None:
            out = whole(query, key, value)
        else:
            out = self.shared.sharing.attend(query, key, value, self.shared.length, whole)
        out = out.flatten(2)
        text, video = out.split([text.shape[1], video.shape[1]], 1)
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def share_tokens(network: HunyuanVideo15Transformer3DModel, sharing: TokenSharing) -> None:
    """Make every later call of `network` split its tokens over ranks.

    Inputs and outputs stay whole and equal on all ranks. Every rank embeds and refines all text
    tokens itself.

    Args:
        network: Modified in place: hooks and attention processors are added.
        sharing: The ranks that share a sequence.
    """
    shared = JointTokens(sharing)

    def cut(block: nn.Module, args: tuple) -> tuple:
        video, text, *others = args
        text, video = shared.split(text, video)
        return video, text, *others

    def join(projection: nn.Module, args: tuple, video: Tensor) -> Tensor:
        return shared.gather_video(video)

    network.transformer_blocks[0].register_forward_pre_hook(cut)
    network.proj_out.register_forward_hook(join)
    for block in network.transformer_blocks:
        block.attn.set_processor(KeyMaskedAttention(shared))


class _KeyMaskedRefiner(HunyuanVideo15IndividualTokenRefiner):
    """The blocks that refine the prompt's tokens, with a mask of keys."""

    def forward(self, hidden_states: Tensor, temb: Tensor, attention_mask: Tensor) -> Tensor:
        keys = attention_mask.bool()[:, None, None]
        for block in self.refiner_blocks:
            hidden_states = block(hidden_states, temb, keys)
        return hidden_states
