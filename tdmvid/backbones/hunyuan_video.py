"""HunyuanVideo 1.5 text to video: a joint transformer, text by Qwen2.5-VL, quoted text by ByT5.

In the stock pipeline a component, the guider, holds the guidance scale, and there is no LoRA
loader; the transformer has one.

Shapes: B batch, C channels, F latent frames, H W latent size, T text tokens. A latent sample is
[C, F, H, W].
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Pipeline
from diffusers import HunyuanVideo15Transformer3DModel as StockNetwork
from diffusers.loaders import HunyuanVideoLoraLoaderMixin
from peft import LoraConfig
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..data.files import sort_metadata
from ..diffusion.denoiser import Cond
from .autoencode import decode_parts, encode_parts
from .base import JOINT_ATTENTION, TokenSharing
from .dtype import torch_dtype
from .flow import FlowBackbone, FlowSpec
from .fused import as_class
from .hunyuan_autoencoder import build_masks_at_once
from .hunyuan_network import HunyuanVideo15Transformer3DModel, fuse, share_tokens
from .lora_files import LORA_FILE, Beside, LoraFiles, metadata_of
from .registry import register
from .spec import Tokens, check_frames, check_sides, check_tiles
from .stock import StockPipeline
from .taps import Tap, trunk_of
from .text_limit import CutPrompts, find_cut_chats

TEXT_LENGTH, QUOTED_LENGTH = 1000, 256  # fixed in the stock pipeline
GUIDER = Path("guider") / "guider_config.json"


class HunyuanVideoSpec(FlowSpec):
    """Describes a HunyuanVideo 1.5 pipeline folder from its configs."""

    network_class, vae_class = HunyuanVideo15Transformer3DModel, AutoencoderKLHunyuanVideo15
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    text_arguments = ("encoder_hidden_states", "encoder_hidden_states_2")

    def find_obstacle(self, folder: Path) -> str:
        """Return why a model that is not plain text to video is refused, or ""."""
        config = self.network_class.load_config(folder, subfolder=self.network_folder)
        wrong = {
            "task_type": (config.get("task_type", "t2v") != "t2v", "needs an image"),
            "use_meanflow": (bool(config.get("use_meanflow")), "predicts mean velocities"),
        }
        for name, (found, what) in wrong.items():
            if found:
                return (
                    f"{folder} has {name}={config[name]!r}: this network {what}; use"
                    " hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
                )
        return super().find_obstacle(folder)

    def vae_latents(
        self, network: StockNetwork, folder: Path, size: ClipSize
    ) -> tuple[int, int, int, int]:
        """Return [C, F, H, W] of one sample.

        Raises:
            ValueError: The model cannot generate `size`.
        """
        vae = AutoencoderKLHunyuanVideo15.load_config(folder, subfolder="vae")
        spatial, temporal = (vae[f"{axis}_compression_ratio"] for axis in ("spatial", "temporal"))
        unit = spatial * network.config.patch_size
        check_sides(size, height=unit, width=unit)
        check_frames(size, temporal)
        frames = (size.frames - 1) // temporal + 1
        return network.config.out_channels, frames, size.height // spatial, size.width // spatial

    def vae_tile(self, vae: AutoencoderKLHunyuanVideo15) -> tuple[int, int]:
        """Return height and width of a tile of latents."""
        overlap = vae.tile_overlap_factor
        return check_tiles(
            (vae.tile_latent_min_height, vae.tile_sample_min_height, overlap),
            (vae.tile_latent_min_width, vae.tile_sample_min_width, overlap),
        )

    def fuse_vae(self, vae: nn.Module) -> None:
        """Build attention masks at once, see hunyuan_autoencoder.py."""
        build_masks_at_once(vae)

    def tokens(self, network: StockNetwork, folder: Path, size: ClipSize) -> Tokens:
        """Return the joint sequence of text and video tokens; prompts are counted at full length.

        The two blocks that refine the prompt alone are not counted as blocks.
        """
        net, (_, *latent) = network.config, self.vae_latents(network, folder, size)
        patch = (net.patch_size_t, net.patch_size, net.patch_size)
        count = math.prod(length // p for length, p in zip(latent, patch, strict=True))
        return Tokens.of_transformer(TEXT_LENGTH + QUOTED_LENGTH + count, net)

    def blocks(self, network: StockNetwork) -> list[nn.Module]:
        """Return the joint blocks."""
        return list(network.transformer_blocks)

    def example(
        self,
        network: StockNetwork,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, 2 C + 1, F, H, W]."""
        net, (_, *latent) = network.config, self.vae_latents(network, folder, size)
        return {
            "hidden_states": torch.empty(batch, net.in_channels, *latent, dtype=dtype),
            "timestep": torch.empty(batch, dtype=dtype),
            "encoder_hidden_states": torch.empty(
                batch, TEXT_LENGTH, net.text_embed_dim, dtype=dtype
            ),
            "encoder_attention_mask": torch.ones(batch, TEXT_LENGTH, dtype=torch.bool),
            "encoder_hidden_states_2": torch.empty(
                batch, QUOTED_LENGTH, net.text_embed_2_dim, dtype=dtype
            ),
            "encoder_attention_mask_2": torch.ones(batch, QUOTED_LENGTH, dtype=torch.bool),
        }


class HunyuanVideoStock(StockPipeline):
    """The stock HunyuanVideo 1.5 pipeline. Its guider holds the guidance scale."""

    even_sigmas = True
    preparation = ("pipe.guider = pipe.guider.new(guidance_scale=1.0)",)

    def arguments(self) -> dict[str, Any]:
        """Return frames, height and width of the stock call."""
        size = self.backbone.size
        return {"num_frames": size.frames, "height": size.height, "width": size.width}

    def guidance(self, cfg: float) -> dict[str, float]:
        """Return no argument: the call has none for guidance."""
        return {}

    def guidance_code(self) -> str:
        """Return no argument, see `preparation`."""
        return ""

    @staticmethod
    def set_guidance(pipeline: Any, cfg: float) -> None:
        """Give the pipeline a guider with this scale."""
        pipeline.guider = pipeline.guider.new(guidance_scale=cfg)

    def default_guidance(self) -> float:
        """Return the scale of the folder's guider."""
        return float(read_object(self.backbone.folder / GUIDER)["guidance_scale"])

    def set_scales(self, pipeline: Any) -> None:
        """Do nothing: the pipeline always has an autoencoder, see `load`."""

    def load(self, *without: str, **given: Any) -> Any:
        """Load the pipeline. One without an autoencoder gets a small one of the same compression.

        The stock pipeline cannot be built without. Its transformer has diffusers' own forward.
        """
        if "vae" in without:
            without = tuple(part for part in without if part != "vae")
            given["vae"] = self._small_autoencoder()
        pipeline = super().load(*without, **given)
        pipeline.vae.enable_slicing()  # its attention takes one video at a time
        if isinstance(pipeline.transformer, HunyuanVideo15Transformer3DModel):
            pipeline.register_modules(transformer=as_class(StockNetwork, pipeline.transformer))
        return pipeline

    def _small_autoencoder(self) -> AutoencoderKLHunyuanVideo15:
        config = AutoencoderKLHunyuanVideo15.load_config(self.backbone.folder, subfolder="vae")
        channels = [2 * config["latent_channels"]] * len(config["block_out_channels"])
        small = {**config, "block_out_channels": channels, "layers_per_block": 1}
        made: AutoencoderKLHunyuanVideo15 = AutoencoderKLHunyuanVideo15.from_config(small)
        return made.requires_grad_(False)


class NetworkLoraFiles(LoraFiles):
    """LoRA files for the transformer's own loader, because the pipeline has none."""

    def save(
        self,
        folder: Path,
        layers: dict[str, Tensor],
        config: LoraConfig,
        text: Mapping[str, tuple[dict[str, Tensor], LoraConfig]] = MappingProxyType({}),
    ) -> None:
        """Write a LoRA to `folder`, with keys and metadata as those of diffusers' pipelines."""
        assert not text, "the pipeline applies no LoRA to text encoders"
        HunyuanVideoLoraLoaderMixin.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=metadata_of(config),
        )
        sort_metadata(folder / self.file)

    def add(self, pipeline: Any, folder: Path, name: str | None = None, *, file: str = "") -> None:
        """Load a LoRA into the stock pipeline's transformer, as `load_code` does."""
        options = {"adapter_name": name} if name else {}
        pipeline.transformer.load_lora_adapter(folder, weight_name=file or self.file, **options)

    def use(self, pipeline: Any, scales: Mapping[str, float]) -> None:
        """Activate adapters by name, each at its scale."""
        pipeline.transformer.set_adapters(list(scales), list(scales.values()))

    def stack_code(self, adapters: Sequence[Beside], own: Sequence[LoraFiles]) -> list[str]:
        """Return lines of Python that load several LoRAs and a student into the transformer."""
        names = [f"adapter_{i}" for i in range(len(adapters))]
        places = [(one.folder, one.file) for one in adapters]
        scales = [*(one.scale for one in adapters), 1.0]
        return [
            *(
                f"pipe.transformer.load_lora_adapter({json.dumps(folder, ensure_ascii=False)},"
                f' weight_name={json.dumps(file, ensure_ascii=False)}, adapter_name="{name}")'
                for name, (folder, file) in zip(
                    [*names, "student"], [*places, ("path/to/this/folder", self.file)], strict=True
                )
            ),
            f"pipe.transformer.set_adapters({json.dumps([*names, 'student'])}, {scales})",
        ]


@register
class HunyuanVideo(FlowBackbone):
    """Backbone of a HunyuanVideo 1.5 pipeline folder."""

    pipeline_class = "HunyuanVideo15Pipeline"
    kernels = ("sdpa",)
    lora_targets = JOINT_ATTENTION
    spec, stock_class = HunyuanVideoSpec(), HunyuanVideoStock
    lora = NetworkLoraFiles(
        pipeline_class,
        load_code=(
            f'pipe.transformer.load_lora_adapter("path/to/this/folder", weight_name="{LORA_FILE}")'
        ),
    )
    fuse = staticmethod(fuse)
    network: HunyuanVideo15Transformer3DModel

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self._shape = self.spec.vae_latents(self.network, folder, size)

    @staticmethod
    def share_tokens(network: HunyuanVideo15Transformer3DModel, sharing: TokenSharing) -> None:
        """Split text and video tokens over ranks, see hunyuan_network.py."""
        share_tokens(network, sharing)

    def latent_shape(self) -> tuple[int, ...]:
        """Return [C, F, H, W]."""
        return self._shape

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments for x_t [B, C, F, H, W] and t [B]."""
        batch, channels, *latent = x_t.shape
        # channels of a given image and its mask: none is given
        blank = x_t.new_zeros(batch, self.network.config.in_channels - channels, *latent)
        return {
            "hidden_states": torch.cat([x_t, blank], 1),
            # rounded to the latents' dtype as by the pipeline
            "timestep": self.process.timestep(t).to(x_t.dtype),
            "encoder_hidden_states": cond["prompt_embeds"],
            "encoder_attention_mask": cond["prompt_embeds_mask"],
            "encoder_hidden_states_2": cond["prompt_embeds_2"],
            "encoder_attention_mask_2": cond["prompt_embeds_mask_2"],
        }

    @classmethod
    def samples_at_once(cls, size: ClipSize, *, tiling: bool) -> int:
        """Return 1: diffusers' autoencoder cannot decode several samples."""
        return 1

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode [B, C, F, H, W] to videos [B, 3, F, H, W] in [-1, 1]."""
        whole = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        return decode_parts(self.vae, whole)

    def leading(self, latents: Tensor, frames: int) -> Tensor:
        """Return the latents [B, C, f, H, W] of the first frames."""
        return latents[:, :, : (frames - 1) // self.vae.config.temporal_compression_ratio + 1]

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Encode videos [B, 3, F, H, W] in [-1, 1] to latents [B, C, F, H, W]."""
        modes = encode_parts(self.vae, videos.to(self.device, self.vae.dtype))
        return (modes * self.vae.config.scaling_factor).to(torch_dtype(self.config))

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """Return embeddings [B, T, D] and masks [B, T] of the prompts and of their quoted text."""
        with torch.no_grad():
            embeds, mask, quoted, quoted_mask = self.text.encode_prompt(
                list(prompts), batch_size=len(prompts)
            )
        return Cond(
            {
                "prompt_embeds": embeds,
                "prompt_embeds_mask": mask.bool(),
                "prompt_embeds_2": quoted,
                "prompt_embeds_mask_2": quoted_mask.bool(),
            }
        )

    def text_limit(self) -> tuple[str, int]:
        """Return the limit of 1000 tokens, those of the chat template's beginning not included."""
        return "tokenizer", TEXT_LENGTH

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the limit behind the beginning of the chat template."""
        part, limit = self.text_limit()
        stock = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
        dropped, system = stock["crop_start"].default, stock["system_message"].default
        found = find_cut_chats(self.folder / part, dropped + limit, prompts, system=system)
        return replace(found, limit=limit)

    def text_settings(self) -> tuple[str, ...]:
        """Return the text lengths, which limit the embeddings."""
        return (str(TEXT_LENGTH), str(QUOTED_LENGTH))

    @staticmethod
    def discriminator_trunk(network: StockNetwork) -> list[Tap]:
        """Keep the first half of the blocks; the features are their video tokens."""
        width = network.config.num_attention_heads * network.config.attention_head_dim
        network.transformer_blocks, taps = trunk_of(network.transformer_blocks, width)
        return taps
