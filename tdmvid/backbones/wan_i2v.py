"""Wan image to video: 2.1 I2V (with an image encoder), 2.2 I2V-A14B (two experts), 2.2 TI2V-5B.

The network's input is the noisy latents, concatenated along channels with a mask of the given
frames and with the latents of a video that starts with the given frame and is grey after it. The
blocks of 2.1 also attend to an image encoder's embeddings of that frame.

TI2V-5B gets the latents of the given frame in place of the first noisy ones, and time 0 for their
tokens. They are also the first frame of every clean prediction.

Shapes: B batch, C channels, F latent frames, H W latent size, N image tokens (257), D their width,
L video tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor, nn
from transformers import BatchFeature

from ..config import ClipSize, ModelConfig
from ..config.json_files import read_object
from ..diffusion.denoiser import Cond
from .dtype import torch_dtype
from .encoded_images import EncodedImages, as_pil, blank_images
from .lora_files import LoraFiles
from .registry import register
from .wan import Wan, WanSpec, WanStock

GIVEN = "image_latents"
"""Name of the condition: normalised latents, [B, C, F, H, W], of the given and grey frames.

F is 1 for TI2V-5B: the given frame alone.
"""
EMBEDS = "image_embeds"
"""Name of the condition: the image encoder's last hidden states but one, [B, N, D]."""


class WanImageSpec(WanSpec):
    """Describes a Wan image-to-video pipeline folder from its configs."""

    image_parts = ("image_encoder", "image_processor")

    def find_obstacle(self, folder: Path) -> str:
        """Return why a folder without an image input is not supported, and what to use; else ""."""
        index = read_object(folder / "model_index.json")
        config = folder / self.network_folder / "config.json"
        network = read_object(config) if config.is_file() else {}
        if not self.gives_first_frame(folder) and self._is_text_only(network):
            return (
                f"in_channels={network['in_channels']} in {self.network_folder}/config.json: the"
                " network has no input for an image; use it as a WanPipeline"
            )
        if network.get("pos_embed_seq_len") is not None:
            return (
                f"pos_embed_seq_len={network['pos_embed_seq_len']} in"
                f" {self.network_folder}/config.json: models of a first and a last frame, such as"
                " Wan 2.1 FLF2V, are not supported; use Wan 2.1 I2V or Wan 2.2 I2V-A14B"
            )
        if network.get("image_dim") and not (index.get(self.image_parts[0]) or [None])[0]:
            return (
                f"image_dim={network['image_dim']} in {self.network_folder}/config.json, but"
                f" model_index.json has no {self.image_parts[0]}: download the folder again"
            )
        return ""

    @staticmethod
    def _is_text_only(network: dict[str, Any]) -> bool:
        """Return whether a network's config has channels for the noisy latents alone."""
        return bool(network) and network["in_channels"] == network["out_channels"]

    def gives_first_frame(self, folder: Path) -> bool:
        """Return whether the given frame replaces the first noisy latents, as in TI2V-5B."""
        return bool(read_object(folder / "model_index.json").get("expand_timesteps"))

    def image_shapes(
        self, network: WanTransformer3DModel, folder: Path, size: ClipSize
    ) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the latents [C, F, H, W] and, if read, of embeddings [N, D]."""
        channels, frames, *sides = self.vae_latents(network, folder, size)
        first = self.gives_first_frame(folder)
        shapes: dict[str, tuple[int, ...]] = {GIVEN: (channels, 1 if first else frames, *sides)}
        embeds = self.example(network, folder, size, 1, torch.float32).get(
            "encoder_hidden_states_image"
        )
        return shapes if embeds is None else shapes | {EMBEDS: tuple(embeds.shape[1:])}

    def example(
        self,
        network: WanTransformer3DModel,
        folder: Path,
        size: ClipSize,
        batch: int,
        dtype: torch.dtype,
    ) -> dict:
        """Return the arguments of one call; `hidden_states` are [B, C, F, H, W]."""
        given = super().example(network, folder, size, batch, dtype)
        if self.gives_first_frame(folder):
            count = self.tokens(network, folder, size).count
            return given | {"timestep": torch.empty(batch, count)}
        width = network.config.image_dim
        if width is None:
            return given
        encoder = read_object(folder / self.image_parts[0] / "config.json")
        count = (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1  # patches and the class
        return given | {
            "encoder_hidden_states_image": torch.empty(batch, count, width, dtype=dtype)
        }


class EncodedVideos(EncodedImages):
    """Given latents in place of the autoencoder, for a pipeline that asks for its device."""

    @property
    def device(self) -> torch.device:
        """Device of the latents."""
        return self.latents.device

    def modules(self) -> Iterator[nn.Module]:
        """Return no modules, and therefore no hooks."""
        return iter(())


class EmbeddedImage:
    """Given embeddings [1, N, D] in place of the image encoder and its processor."""

    def __init__(self, embeds: Tensor):
        self.device, self.hidden_states = embeds.device, (embeds, embeds)

    def modules(self) -> Iterator[nn.Module]:
        """Return no modules, and therefore no hooks."""
        return iter(())

    def __call__(self, *, images: Any = None, **_: Any) -> Any:
        """Return no pixels as the processor of `images`, and the embeddings as the encoder."""
        return self if images is None else BatchFeature()


class WanImageStock(WanStock):
    """The stock Wan image-to-video pipeline, which accepts one image per call."""

    one_image_a_call = True

    def given_images(self, images: Tensor) -> Any:
        """Return one image [1, 3, H, W] as a PIL image, the input of an image encoder's processor.

        The processor expects 8-bit values, the autoencoder of a stock call takes either.
        """
        return as_pil(images)[0]

    def latents(self, pipeline: Any, z: Tensor, cond: Cond, **how: Any) -> Tensor:
        """Sample from z [B, C, F, H, W], with one call per row if there are image embeddings.

        A call repeats the embeddings of its image for every row.
        """
        if EMBEDS not in cond or len(z) == 1:
            return super().latents(pipeline, z, cond, **how)
        null: Cond | None = how.pop("null", None)
        rows = [slice(row, row + 1) for row in range(len(z))]
        return torch.cat(
            [
                super(WanImageStock, self).latents(
                    pipeline,
                    z[row],
                    cond.rows(row),
                    null=null if null is None or null.batch == 1 else null.rows(row),
                    **how,
                )
                for row in rows
            ]
        )

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the arguments of a call; cached latents [B, C, F, H, W] replace the autoencoder.

        The list of generators makes the pipeline encode once per row.
        """
        given, backbone = dict(cond), self.backbone
        if EMBEDS in given:
            pipeline.image_encoder = pipeline.image_processor = EmbeddedImage(given.pop(EMBEDS))
        latents, size = given.pop(GIVEN).float(), backbone.size
        mean, std = backbone.latent_scale()
        config = backbone.vae_config()
        pipeline.vae = EncodedVideos(
            latents * std + mean,
            z_dim=latents.shape[1],
            latents_mean=config["latents_mean"],
            latents_std=config["latents_std"],
        )
        generators = [torch.Generator(latents.device) for _ in latents]  # they draw nothing
        blank = blank_images(1, size.height, size.width, latents)
        return given | {"image": blank, "generator": generators}


@register
class WanImageToVideo(Wan):
    """Backbone of a Wan image-to-video pipeline folder."""

    pipeline_class = "WanImageToVideoPipeline"
    spec, stock_class = WanImageSpec(), WanImageStock
    lora = LoraFiles(pipeline_class)
    takes_images = True
    also_opens = ("WanPipeline",)  # TI2V-5B's folder names the pipeline without an image

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        super().__init__(folder, config, size, device)
        self._embedder: Any = None
        self.first_frame_is_given = self.spec.gives_first_frame(folder)

    @property
    def text(self) -> Any:
        """The text-to-video pipeline with only its text encoder, loaded on first use.

        It encodes prompts in the same way.
        """
        if self._text is None:
            others = (*self.spec.components(self.folder), *self.spec.image_parts)
            loaded = self.stock.load(*others, "vae")
            self._text = WanPipeline(
                loaded.tokenizer, loaded.text_encoder, vae=None, scheduler=loaded.scheduler
            )
        return self._text

    @property
    def embedder(self) -> Any:
        """The stock pipeline with only its image encoder, loaded on first use."""
        if self._embedder is None:
            others = (*self.spec.components(self.folder), *self.spec.text_parts)
            self._embedder = self.stock.load(*others, "vae")
        return self._embedder

    def release_image(self) -> None:
        """Free the memory of the image encoder and the autoencoder."""
        super().release_image()
        self._embedder = None

    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the transformer's arguments; x_t [B, C, F, H, W] gets mask and given latents."""
        given = cond[GIVEN].to(x_t.dtype)
        if self.first_frame_is_given:
            return super().inputs(_replace_first(x_t, given), t, cond) | {"timestep": self.times(t)}
        mask = given.new_zeros(len(given), self.clip.temporal, *given.shape[2:])
        mask[:, :, 0] = 1
        more = {"encoder_hidden_states_image": cond[EMBEDS]} if EMBEDS in cond else {}
        video = torch.cat([x_t, mask, given], 1)
        return super().inputs(x_t, t, cond) | {"hidden_states": video} | more

    def times(self, t: Tensor) -> Tensor:
        """Return the network's time of every token, [B, L], for t [B]: 0 in the given frame."""
        tokens = self.spec.tokens(self.network, self.folder, self.size).count
        times = self.process.timestep(t)[:, None].repeat(1, tokens)
        times[:, : tokens // self.latent_shape()[1]] = 0
        return times

    def predict_x0(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call a network at x_t [B, C, F, H, W] and t [B] and return x0, [B, C, F, H, W] float32.

        If the first frame is given, it is returned as it is.
        """
        x0 = super().predict_x0(network, x_t, t, cond)
        return _replace_first(x0, cond[GIVEN].to(x0)) if self.first_frame_is_given else x0

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Cond:
        """Encode images [B, 3, H, W] in [-1, 1], each followed by grey frames where they are read.

        Returns:
            Normalised latents, [B, C, F, H, W] in the network's dtype, and the image encoder's
            embeddings [B, N, D] if the network reads them.
        """
        first = images.to(self.device, self.vae.dtype)[:, :, None]
        mean, std = self.latent_scale()
        encoded = []
        for one in first.split(1):
            frames = 0 if self.first_frame_is_given else self.size.frames - 1
            later = one.new_zeros(1, 3, frames, *one.shape[3:])
            encoded.append(self.vae.encode(torch.cat([one, later], 2)).latent_dist.mode())
        latents = (torch.cat(encoded).float() - mean) / std
        cond = {GIVEN: latents}
        if self.network.config.image_dim is not None:
            cond[EMBEDS] = self.embedder.encode_image(as_pil(images))
        return Cond(cond).to(torch_dtype(self.config))


def _replace_first(x: Tensor, given: Tensor) -> Tensor:
    """Return x [B, C, F, H, W] with `given` [B, C, 1, H, W] as its first frame."""
    return torch.cat([given, x[:, :, 1:]], 2)
