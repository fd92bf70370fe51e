"""Attention of HunyuanVideo 1.5's autoencoder, with masks that are built at once.

diffusers fills the mask of an attention layer row by row, one kernel per token: 7,936 for a tile of
31 x 16 x 16 latents.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch import Tensor, nn

from .fused import as_class


class CausalAttention(HunyuanVideo15AttnBlock):
    """Attention of each token to all tokens of its own frame and of earlier ones."""

    @staticmethod
    def prepare_causal_attention_mask(
        n_frame: int,
        n_hw: int,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int | None = None,
    ) -> Tensor:
        """Return what is added to the scores: 0, or minus infinity for tokens of later frames.

        Args:
            n_frame: Number of frames F.
            n_hw: Number of tokens of a frame N.
            dtype: Dtype of the mask.
            device: Device of the mask.
            batch_size: Number of samples B; None for a mask without a batch dimension.

        Returns:
            [B, F N, F N] or [F N, F N].
        """
        frames = torch.full((n_frame, n_frame), float("-inf"), dtype=dtype, device=device).triu(1)
        tokens = frames[:, None, :, None].expand(-1, n_hw, -1, n_hw)
        mask = tokens.reshape(n_frame * n_hw, n_frame * n_hw)
        return mask if batch_size is None else mask.expand(batch_size, -1, -1)


def build_masks_at_once(vae: nn.Module) -> None:
    """Replace the attention layers of an autoencoder in place. Parameters keep their names.

    Args:
        vae: The autoencoder, on any device.
    """
    for part in list(vae.modules()):
        for name, child in part.named_children():
            if type(child) is HunyuanVideo15AttnBlock:
                setattr(part, name, as_class(CausalAttention, child))
