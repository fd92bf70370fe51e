"""Shared code of all families with a diffusers pipeline folder.

A family adds the network's arguments (`inputs`), the conversion of its prediction to x0 (`clean`),
the encoding of prompts, and the sizes that it can generate.

Shapes: B batch. Latents are [B, ...].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ClipSize, ModelConfig
from ..data.files import file_fingerprint
from ..data.reading import reading
from ..diffusion.denoiser import Cond
from .base import Backbone
from .dtype import accept_other_dtypes, torch_dtype
from .experts import Experts
from .stock import AGAIN, StockPipeline
from .text_limit import CutPrompts, find_cut_prompts
from .text_lora import digest_of, with_text_lora
from .weight_files import load_whole, weights_variant


class PipelineBackbone(Backbone):
    """Backbone of a pipeline folder. Conditions are named as the pipeline's arguments."""

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        self.folder, self.config, self.size = folder, config, size
        self.device = torch.device(device)
        self.process = self.spec.read_process(folder)
        self.network = self.fresh_network()
        self._text: Any = None
        self._vae: Any = None
        self.text_lora: dict[str, Tensor] = {}
        if config.tiling:  # check the tiles now rather than at the first decoding
            with torch.device("meta"):
                self.spec.empty_vae(self.network, folder, config, size)

    @property
    def stock(self) -> StockPipeline:
        """The stock pipeline, built anew at each access."""
        return self.stock_class(self)

    @abstractmethod
    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return the keyword arguments of a network call.

        Args:
            x_t: Noisy latents [B, ...] in the network's dtype.
            t: Times, [B].
            cond: Conditions in the network's dtype.
        """

    @abstractmethod
    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Convert a network's output to x0.

        Args:
            x_t: Noisy latents, [B, ...] float32.
            out: The network's output, [B, ...] float32.
            t: Times, [B].

        Returns:
            x0, [B, ...] float32.
        """

    def predict_x0(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call a network at x_t [B, ...] and t [B] and return x0, [B, ...] float32."""
        return self.clean(x_t, self.call(network, x_t, t, cond), t)

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Call a network and return its first output as float32.

        Args:
            network: A network of the family, or an object with the same call signature.
            x_t: Noisy latents, [B, ...].
            t: Times, [B].
            cond: Conditions of the samples.
            more: Further keyword arguments of the network.

        Returns:
            The first output, [B, ...] for a denoising network.
        """
        dtype = torch_dtype(self.config)
        inputs = self.inputs(x_t.to(dtype), t, self.cast(cond))
        return network(**inputs, **more, return_dict=False)[0].float()

    def fresh_network(self) -> nn.Module:
        """Load the network, frozen and unsharded; with `idle_expert="host"` to host memory."""
        idle_in_host_memory = self.config.idle_expert == "host"
        place = torch.device("cpu") if idle_in_host_memory else self.device

        def load(_: Path, name: str) -> nn.Module:
            part: nn.Module = self._part(self.spec.network_class, name, place=place)
            return part

        network = self.spec.assemble(self.folder, load).requires_grad_(False)
        if idle_in_host_memory and isinstance(network, Experts):
            network.keep_idle_in_host_memory(self.device)
        return network

    def cast(self, cond: Cond) -> Cond:
        """Return conditions in the network's dtype. Integers and masks keep theirs."""
        return Cond(
            {
                name: x.to(torch_dtype(self.config)) if x.is_floating_point() else x
                for name, x in cond.items()
            }
        )

    def _part(
        self,
        kind: Any,
        name: str,
        dtype: torch.dtype | None = None,
        *,
        place: torch.device | None = None,
    ) -> Any:
        folder = self.folder / name
        # load straight to the device: host memory then holds one weight file at a time
        with reading(folder, advice=AGAIN):
            return load_whole(
                kind,
                folder,
                dtype=dtype or torch_dtype(self.config),
                variant=weights_variant(folder, self.config.variant),
                device_map=place or self.device,
            )

    @property
    def text(self) -> Any:
        """The stock pipeline with only its text encoders, loaded on first use."""
        if self._text is None:
            pipeline = self.stock.load(*self.spec.components(self.folder), "vae")
            self._text = with_text_lora(pipeline, self.text_lora)
        return self._text

    @contextmanager
    def encoding_with(self, pipeline: Any) -> Iterator[None]:
        """Encode prompts with the text encoders of a given stock pipeline inside the context.

        Args:
            pipeline: A stock pipeline with its text encoders.
        """
        own, self._text = self._text, pipeline
        try:
            yield
        finally:
            self._text = own

    @property
    def vae(self) -> Any:
        """The autoencoder, loaded on first use."""
        if self._vae is None:
            self._vae = self._part(
                self.spec.vae_class, "vae", self.spec.vae_dtype(self.folder, self.config)
            )
            accept_other_dtypes(self._vae)
            self.spec.fuse_vae(self._vae)
            if self.config.tiling:
                self._vae.enable_tiling()
        return self._vae

    def release_text(self) -> None:
        """Free the memory of the text encoders."""
        self._text = None

    def release_vae(self) -> None:
        """Free the memory of the autoencoder."""
        self._vae = None

    @abstractmethod
    def text_limit(self) -> tuple[str, int]:
        """Return the folder of the tokenizer that limits prompts, and the maximal token count."""

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        """Return which prompts exceed the limit of `text_limit`."""
        part, limit = self.text_limit()
        return find_cut_prompts(self.folder / part, limit, prompts)

    def text_settings(self) -> tuple[str, ...]:
        """Return settings that change the embeddings of prompts."""
        return ()

    def text_fingerprint(self) -> str:
        """Return a digest of the text encoders' files, dtype and `text_settings`."""
        folders = [
            self.folder / part for part in self.spec.text_parts if (self.folder / part).is_dir()
        ]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        lora = [digest_of(self.text_lora)] if self.text_lora else []
        return file_fingerprint(files, self.config.dtype, *self.text_settings(), *lora)

    def video_fingerprint(self) -> str:
        """Return a digest of the autoencoder's files and the clip size."""
        return self._fingerprint_of("vae")

    def image_fingerprint(self) -> str:
        """Return a digest of the image encoders' and the autoencoder's files and the clip size."""
        return self._fingerprint_of("vae", *self.spec.image_parts)

    def _fingerprint_of(self, *parts: str) -> str:
        """Return a digest of components of the folder and the clip size."""
        folders = [self.folder / part for part in parts if (self.folder / part).is_dir()]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        tiled = ["tiled"] if self.config.tiling else []
        return file_fingerprint(
            files,
            type(self).__name__,
            self.config.dtype,
            str(self.size),
            str(self.latent_shape()),
            *tiled,
        )
