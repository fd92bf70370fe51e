"""Z-Image (arXiv 2511.22699): one transformer over image and text tokens, text by Qwen3.

The network takes the samples of a batch as lists: images one by one, and captions of different
lengths. Its time input is 1 - t, and it predicts x0 - eps.

Shapes: B batch, C channels, H W latent size, T text tokens. A latent sample is [C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from ..config import ClipSize
from ..diffusion.denoiser import Cond
from .dtype import torch_dtype
from .flow import FlowBackbone, FlowSpec
from .images import Images, ImageSpec, ImageStock, image_latents
from .lora_files import LoraFiles
from .registry import register
from .spec import Tokens, check_sides
from .taps import Tap, trunk_of
from .text_limit import CutPrompts, find_cut_chats

TEXT_LENGTH = 512  # the stock call's default
PATCH = 2
"""Latents per side of a patch, the stock call's only choice."""
UNIT = 32
"""The network pads image and text to multiples of this number of tokens."""


class ZImageSpec(ImageSpec, FlowSpec):
    """Describes a Z-Image pipeline folder from its configs."""

    network_class = ZImageTransformer2DModel
    text_arguments = ("cap_feats",)

    def vae_latents(
        self, network: ZImageTransformer2DModel, folder: Path, size: ClipSize
    ) -> tuple[int, int, int]:
        """Return [C, H, W] of one sample."""
        return patched_latents(network, folder, size)

    def tokens(self, network: ZImageTransformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of image and text tokens; captions are counted at full length.

        The blocks that refine image or text alone are counted as blocks of the whole sequence.
        """
        net, (_, height, width) = network.config, patched_latents(network, folder, size)
        image = (height // PATCH) * (width // PATCH)
        count = -(-image // UNIT) * UNIT + TEXT_LENGTH
        return Tokens(count, net.n_heads, net.dim, net.n_layers + net.n_refiner_layers)

    def blocks(self, network: ZImageTransformer2DModel) -> list[nn.Module]:
        """Return the blocks for image, text and both."""
        return [*network.noise_refiner, *network.context_refiner, *network.layers]

    def example(
        self,
        network: ZImageTransformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call: lists of [C, 1, H, W] and of [T, D]."""
        channels, height, width = patched_latents(network, folder, size)
        captions = [
            torch.empty(TEXT_LENGTH, network.config.cap_feat_dim, dtype=dtype) for _ in range(batch)
        ]
        return {
            "x": [torch.empty(channels, 1, height, width, dtype=dtype) for _ in range(batch)],
            "t": torch.empty(batch),
            "cap_feats": captions,
        }


class ZImageStock(ImageStock):
    """The stock Z-Image pipeline."""

    even_sigmas = True
    unguided = 0.0  # it adds guidance_scale times the difference to the conditional prediction

    def arguments(self) -> dict[str, Any]:
        """Return height, width and text length of the stock call."""
        return super().arguments() | {"max_sequence_length": TEXT_LENGTH}

    def write_latents(self, z: Tensor) -> Tensor:
        """Return noise [B, C, H, W] in float32, which the stock call requires in all its steps."""
        return z.float()

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the captions as a list of [T, D]."""
        return {"prompt_embeds": captions(cond)}

    def negative_conditions(self, null: Cond) -> dict[str, Any]:
        """Return the captions of the null branch as a list of [T, D]."""
        return {"prompt_embeds": captions(null)}


@register
class ZImage(Images, FlowBackbone):
    """Backbone of a Z-Image pipeline folder."""

    pipeline_class = "ZImagePipeline"
    kernels = ("sdpa",)
    spec, stock_class = ZImageSpec(), ZImageStock
    lora = LoraFiles(pipeline_class)
    network: ZImageTransformer2DModel

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, H, W]."""
        return patched_latents(self.network, self.folder, self.size)

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        scale = self.process.scale
        clean = (scale - self.process.timestep(t)) / scale  # 1 - t, rounded as by the pipeline
        return {"x": list(x_t[:, :, None].unbind()), "t": clean, "cap_feats": captions(cond)}

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Call a network and return its first output as float32: [B, C, H, W] of a denoiser."""
        inputs = self.inputs(x_t.to(torch_dtype(self.config)), t, self.cast(cond))
        out = network(**inputs, **more, return_dict=False)[0]
        return (torch.stack(out)[:, :, 0] if isinstance(out, list) else out).float()

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return x0 = x_t + t out, [B, C, H, W] float32."""
        return super().clean(x_t, -out, t)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D], zero after each prompt's end, and its mask [B, T]."""
        with torch.no_grad():
            found, _ = self.text.encode_prompt(
                list(prompts),  # the pipeline changes the list
                do_classifier_free_guidance=False,
                max_sequence_length=TEXT_LENGTH,
            )
        mask = torch.zeros(len(found), TEXT_LENGTH, dtype=torch.bool, device=found[0].device)
        embeds = found[0].new_zeros(len(found), TEXT_LENGTH, found[0].shape[1])
        for row, caption in enumerate(found):
            embeds[row, : len(caption)], mask[row, : len(caption)] = caption, True
        return Cond({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def text_limit(self) -> tuple[str, int]:
        """Return the limit of 512 tokens, the chat template's included."""
        return "tokenizer", TEXT_LENGTH

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the limit, counting the beginning of the chat template."""
        part, limit = self.text_limit()
        return find_cut_chats(self.folder / part, limit, prompts, enable_thinking=True)

    def text_settings(self) -> tuple[str, ...]:
        """Return the text length, which limits the embeddings."""
        return (str(TEXT_LENGTH),)

    @staticmethod
    def discriminator_trunk(network: ZImageTransformer2DModel) -> list[Tap]:
        """Keep the first half of the joint blocks; the features are their image and text tokens."""
        network.layers, taps = trunk_of(network.layers, network.config.dim)
        return taps


def captions(cond: Cond) -> list[Tensor]:
    """Return the embeddings of each prompt without padding, [T, D] each.

    The network needs the lengths on the host, so a GPU waits once for each call.
    """
    lengths = cond["prompt_attention_mask"].sum(1).tolist()
    return [row[:length] for row, length in zip(cond["prompt_embeds"], lengths, strict=True)]


def patched_latents(
    network: ZImageTransformer2DModel, folder: Path, size: ClipSize
) -> tuple[int, int, int]:
    """Return [C, H, W] of one sample.

    Raises:
        ValueError: Height or width is not a multiple of a patch.
    """
    channels, height, width = image_latents(network, folder, size)
    unit = size.height // height * PATCH
    check_sides(size, height=unit, width=unit)
    return channels, height, width
