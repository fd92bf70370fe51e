"""PixArt-alpha (arXiv 2310.00426), 256 to 1024 pixels: a transformer with T5 text conditioning.

It predicts the noise and, in further channels, its variance.

Shapes: B batch, C channels, H W latent size, T text tokens. A latent sample is [C, H, W].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import ClipSize
from ..diffusion.denoiser import Cond
from .images import Images, ImageSpec, ImageStock, image_latents
from .lora_files import Beside, LoraFiles
from .registry import register
from .spec import Tokens
from .taps import Tap, trunk_of
from .vp import VPBackbone, VPSpec

TEXT_LENGTH = 120  # used by every PixArt-alpha, and the pipeline's default


class PixArtSpec(ImageSpec, VPSpec):
    """Describes a PixArt-alpha pipeline folder from its configs."""

    network_class = PixArtTransformer2DModel

    def tokens(self, network: PixArtTransformer2DModel, folder: Path, size: ClipSize) -> Tokens:
        """Return the image tokens of one sample; text is cross-attended."""
        net, (_, height, width) = network.config, image_latents(network, folder, size)
        count = (height // net.patch_size) * (width // net.patch_size)
        return Tokens.of_transformer(count, net)

    def blocks(self, network: PixArtTransformer2DModel) -> list[nn.Module]:
        """Return the transformer blocks."""
        return list(network.transformer_blocks)

    def example(
        self,
        network: PixArtTransformer2DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, C, H, W]."""
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


class PixArtStock(ImageStock):
    """The stock PixArt-alpha pipeline."""

    def arguments(self) -> dict[str, Any]:
        """Return the size and text arguments of the stock call."""
        # Caption cleaning depends on optional packages. Resolution binning changes the size.
        return super().arguments() | {
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": TEXT_LENGTH,
        }


class PeftFolder(LoraFiles):
    """LoRA files in peft's own format, because the family's pipeline has no LoRA loader."""

    def save(
        self,
        folder: Path,
        layers: dict[str, Tensor],
        config: LoraConfig,
        text: Mapping[str, tuple[dict[str, Tensor], LoraConfig]] = MappingProxyType({}),
    ) -> None:
        """Write a LoRA to `folder` as adapter_model.safetensors and adapter_config.json."""
        assert not text, "peft's format holds one network"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {f"{self.prefix}.{name}": tensor for name, tensor in layers.items()},
            folder / self.file,
            metadata={"format": "pt"},
        )
        ordered = copy(config)  # the order of a set differs between processes
        for name, value in vars(config).items():
            if isinstance(value, set):
                setattr(ordered, name, sorted(value))
        ordered.save_pretrained(str(folder))

    def add(self, pipeline: Any, folder: Path, name: str | None = None, *, file: str = "") -> None:
        """Load a LoRA into the stock pipeline with peft, which reads one file name only."""
        assert file in ("", self.file)
        network, adapter = pipeline.transformer, name or "default"  # peft's default name
        if isinstance(network, PeftModel):
            network.load_adapter(folder, adapter)
        else:
            pipeline.transformer = PeftModel.from_pretrained(network, folder, adapter_name=adapter)

    def use(self, pipeline: Any, scales: Mapping[str, float]) -> None:
        """Activate adapters by name, each at its scale."""
        pipeline.transformer.base_model.set_adapter(list(scales))
        for layer in pipeline.transformer.modules():
            if isinstance(layer, LoraLayer):
                for name, scale in scales.items():
                    layer.set_scale(name, scale)

    def stack_code(self, adapters: Sequence[Beside], own: Sequence[LoraFiles]) -> list[str]:
        """Return lines of Python that load several LoRAs and a student with peft."""
        names = [f"adapter_{i}" for i in range(len(adapters))]
        folders = [
            *(json.dumps(one.folder, ensure_ascii=False) for one in adapters),
            '"path/to/this/folder"',
        ]
        first, *others = zip(folders, [*names, "student"], strict=True)
        return [
            f"pipe.transformer = PeftModel.from_pretrained(pipe.transformer, {first[0]},"
            f' adapter_name="{first[1]}")',
            *(
                f'pipe.transformer.load_adapter({folder}, adapter_name="{name}")'
                for folder, name in others
            ),
            f"pipe.transformer.base_model.set_adapter({json.dumps([*names, 'student'])})",
            "for layer in pipe.transformer.modules():",
            '    if hasattr(layer, "lora_A"):',
            *(
                f'        layer.set_scale("{name}", {one.scale})'
                for name, one in zip(names, adapters, strict=True)
            ),
        ]


@register
class PixArt(Images, VPBackbone):
    """Backbone of a PixArt-alpha pipeline folder."""

    pipeline_class = "PixArtAlphaPipeline"
    spec, stock_class = PixArtSpec(), PixArtStock
    lora = PeftFolder(
        pipeline_class,
        prefix="base_model.model",
        file="adapter_model.safetensors",
        any_name=False,
        load_code=(
            'pipe.transformer = PeftModel.from_pretrained(pipe.transformer, "path/to/this/folder")'
        ),
        load_imports=("from peft import PeftModel",),
    )
    network: PixArtTransformer2DModel

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, H, W] and t [B]."""
        return {
            "hidden_states": x_t,
            "timestep": self.process.timestep(t),
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_attention_mask": cond["prompt_attention_mask"],
            "added_cond_kwargs": sizes(self.network, self.size, x_t),
        }

    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return x0 [B, C, H, W] from the first C channels of the output."""
        return super().clean(
            x_t, out[:, : x_t.shape[1]], t
        )  # the second half, if any, is the predicted variance

    def text_limit(self) -> tuple[str, int]:
        """Return the tokenizer's folder and 120 tokens."""
        return "tokenizer", TEXT_LENGTH

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return `prompt_embeds` [B, T, D] and `prompt_attention_mask` [B, T] of B prompts."""
        with torch.no_grad():
            embeds, mask, _, _ = self.text.encode_prompt(
                prompts,
                do_classifier_free_guidance=False,
                clean_caption=False,
                max_sequence_length=TEXT_LENGTH,
            )
        return Cond({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    @staticmethod
    def discriminator_trunk(network: PixArtTransformer2DModel) -> list[Tap]:
        """Keep the first half of the blocks."""
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width)
        return taps


def sizes(
    network: PixArtTransformer2DModel, size: ClipSize, x_t: Tensor
) -> dict[str, Tensor | None]:
    """Return the conditions on resolution and aspect ratio.

    Args:
        network: A PixArt transformer.
        size: Height and width in pixels.
        x_t: Latents [B, C, H, W]; gives the number of rows, dtype and device.

    Returns:
        `resolution` [B, 2] and `aspect_ratio` [B, 1]. Both are None for models that do not have
        them; only models of 1024 pixels do.
    """
    if not network.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    values = {"resolution": [size.height, size.width], "aspect_ratio": [size.height / size.width]}
    return {
        name: torch.tensor(value, dtype=x_t.dtype, device=x_t.device).expand(len(x_t), -1)
        for name, value in values.items()
    }
