"""PixArt-alpha, 256 to 1024 pixels: a transformer conditioned on T5, which predicts noise and
variance.

Shapes: B batch, C channels, H W latent size, T text tokens. A latent sample is [C, H, W].
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn

from ..diffusion.denoiser import Cond
from .base import ClipSize, Tap, half_of
from .images import Images, ImageSpec, image_latents
from .registry import register
from .spec import Tokens
from .vp import VPBackbone, VPSpec

TEXT_LENGTH = 120  # of every PixArt-alpha, and the pipeline's default


class PixArtSpec(ImageSpec, VPSpec):
    """A PixArt-alpha pipeline folder, from its configs."""

    network_class = PixArtTransformer2DModel

    def tokens(self, network: PixArtTransformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        net, (_, height, width) = network.config, image_latents(network, folder, size)
        count = (height // net.patch_size) * (width // net.patch_size)
        return Tokens(
            count,
            net.num_attention_heads,
            net.num_attention_heads * net.attention_head_dim,
            net.num_layers,
        )

    def blocks(self, network: PixArtTransformer2DModel) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def example(
        self,
        network: PixArtTransformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        x_t = torch.empty(batch, *image_latents(network, folder, size), dtype=dtype)
        return {
            "hidden_states": x_t,
            "timestep": torch.empty(batch, dtype=torch.long),
            "encoder_hidden_states": torch.empty(
                batch, TEXT_LENGTH, network.config.caption_channels, dtype=dtype
            ),
            "encoder_attention_mask": torch.empty(batch, TEXT_LENGTH, dtype=torch.long),
            "added_cond_kwargs": sizes(network, size, x_t),
        }


@register
class PixArt(Images, VPBackbone):
    """A PixArt-alpha pipeline folder as a backbone.

    Its pipeline has no LoRA loader: as is the custom for this family, a LoRA is a folder of peft's.
    """

    pipeline_class = "PixArtAlphaPipeline"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    lora_file, lora_prefix = "adapter_model.safetensors", "base_model.model"
    load_imports = ("from peft import PeftModel",)
    load_code = (
        'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "path/to/this/folder")'
    )
    spec = PixArtSpec()

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        return {
            "hidden_states": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_attention_mask": cond["prompt_attention_mask"],
            "added_cond_kwargs": sizes(self.network, self.size, x_t),
        }

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return super().clean(
            x_t, out[:, : x_t.shape[1]], t
        )  # the other half, if any, is the variance

    def encode_prompts(self, prompts: list[str]) -> Cond:
        with torch.no_grad():
            embeds, mask, _, _ = self.text.encode_prompt(
                prompts,
                do_classifier_free_guidance=False,
                clean_caption=False,
                max_sequence_length=TEXT_LENGTH,
            )
        return Cond({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def stock_arguments(self) -> dict:
        # Captions are cleaned only where optional packages are installed, and binning changes the
        # size.
        return super().stock_arguments() | {
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": TEXT_LENGTH,
        }

    def save_lora(self, folder: Path, layers: dict[str, Tensor], config: LoraConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{self.lora_prefix}.{name}": tensor for name, tensor in layers.items()},
            folder / self.lora_file,
            metadata={"format": "pt"},
        )
        config.save_pretrained(folder)

    @classmethod
    def read_alpha(cls, folder: Path, metadata: dict[str, str]) -> float | None:
        return LoraConfig.from_pretrained(folder).lora_alpha

    @staticmethod
    def add_lora(pipeline: DiffusionPipeline, folder: Path) -> None:
        pipeline.transformer = PeftModel.from_pretrained(pipeline.transformer, folder)

    @staticmethod
    def halve(network: PixArtTransformer2DModel) -> list[Tap]:
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = half_of(network.transformer_blocks, width)
        return taps


def sizes(
    network: PixArtTransformer2DModel, size: ClipSize, x_t: Tensor
) -> dict[str, Tensor | None]:
    """The conditions on resolution and aspect ratio, [B, 2] and [B, 1], of models that have them
    (1024 pixels).
    """
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    values = {"resolution": [size.height, size.width], "aspect_ratio": [size.height / size.width]}
    return {
        name: torch.tensor(value, dtype=x_t.dtype, device=x_t.device).expand(len(x_t), -1)
        for name, value in values.items()
    }
