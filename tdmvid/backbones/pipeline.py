"""What all families share whose teacher is a diffusers pipeline folder.

A family adds how its network is called (`inputs`), what its prediction means (`clean`), how
prompts become conditions, and the sizes it can generate.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

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
from .weight_files import load_whole, weights_variant


class PipelineBackbone(Backbone):
    """A teacher in a pipeline folder; its Cond has the names of the pipeline's arguments."""

    stock_class: ClassVar[type[StockPipeline]]

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        self.folder, self.config, self.size = folder, config, size
        self.device = torch.device(device)
        self.process = self.spec.read_process(folder)
        self.network = self.fresh_network()
        self._text: Any = None
        self._vae: Any = None
        if config.tiling:  # what a picture would need is refused before there is one
            with torch.device("meta"):
                self.spec.empty_vae(self.network, folder, config, size)

    @property
    def stock(self) -> StockPipeline:
        return self.stock_class(self)

    @abstractmethod
    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Return keyword arguments of a network call; x_t and cond have the network's dtype."""

    @abstractmethod
    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """Return x0 of what the network predicted, both float32 [B, ...]."""

    def predict_x0(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.clean(x_t, self.call(network, x_t, t, cond), t)

    def call(self, network: Any, x_t: Tensor, t: Tensor, cond: Cond, **more: Any) -> Tensor:
        """Return the first output of a network, or of what is called like it, float32.

        Args:
            x_t, t: [B, ...] and [B].
            more: further keyword arguments of the network.
        """
        dtype = torch_dtype(self.config)
        inputs = self.inputs(x_t.to(dtype), t, self.cast(cond))
        return network(**inputs, **more, return_dict=False)[0].float()

    def fresh_network(self) -> nn.Module:
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
        """Return conditions in the network's dtype; integers and masks stay as they are."""
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
        # straight to the device: on the host is never more than one file of the weights
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
        """The stock pipeline with nothing but its text encoders, loaded on first use."""
        if self._text is None:
            self._text = self.stock.load(*self.spec.components(self.folder), "vae")
        return self._text

    @property
    def vae(self) -> Any:
        """The autoencoder, loaded on first use."""
        if self._vae is None:
            self._vae = self._part(
                self.spec.vae_class, "vae", self.spec.vae_dtype(self.folder, self.config)
            )
            accept_other_dtypes(self._vae)
            if self.config.tiling:
                self._vae.enable_tiling()
        return self._vae

    def release_text(self) -> None:
        self._text = None

    def release_vae(self) -> None:
        self._vae = None

    @abstractmethod
    def text_limit(self) -> tuple[str, int]:
        """Return the folder of the tokenizer whose limit counts, and how many tokens are read."""

    def find_cut_prompts(self, prompts: Sequence[str]) -> CutPrompts:
        part, limit = self.text_limit()
        return find_cut_prompts(self.folder / part, limit, prompts)

    def text_settings(self) -> tuple[str, ...]:
        """Return settings that change what prompts are encoded to."""
        return ()

    def text_fingerprint(self) -> str:
        folders = [
            self.folder / part for part in self.spec.text_parts if (self.folder / part).is_dir()
        ]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        return file_fingerprint(files, self.config.dtype, *self.text_settings())

    def video_fingerprint(self) -> str:
        return self._fingerprint_of("vae")

    def image_fingerprint(self) -> str:
        return self._fingerprint_of("vae", *self.spec.image_parts)

    def _fingerprint_of(self, *parts: str) -> str:
        """Identify components of the folder and the size of a clip."""
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
