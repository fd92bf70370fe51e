"""What all families share whose teacher is a diffusers pipeline folder.

A family adds how its network is called (`inputs`), what its prediction means (`clean`), how
prompts become conditions, and the sizes it can generate.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline, ModelMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from safetensors import safe_open
from torch import Tensor, nn

from ..data.files import file_fingerprint
from ..diffusion.denoiser import Cond
from .base import LORA_FILE, Backbone, ClipSize, ModelConfig
from .scheduler import load_scheduler


class PipelineBackbone(Backbone):
    """A teacher in a pipeline folder. The names in its Cond are those of the pipeline's arguments."""

    pipeline_options: ClassVar[dict] = {}
    """Of every loading of the pipeline; None for a component that is never needed."""

    def __init__(
        self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str
    ):
        self.folder, self.config, self.size, self.device = (
            folder,
            config,
            size,
            torch.device(device),
        )
        self.process = self.spec.read_process(folder)
        self.network = self.fresh_network()
        self._text = self._vae = None
        if config.tiling:  # what a picture would need is refused before there is one
            with torch.device("meta"):
                self.spec.empty_vae(self.network, folder, config, size)

    @abstractmethod
    def inputs(self, x_t: Tensor, t: Tensor, cond: Cond) -> dict:
        """Keyword arguments of a network call; x_t and cond are in the network's dtype already."""

    @abstractmethod
    def clean(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """x0 of what the network predicted, both float32."""

    @abstractmethod
    def stock_arguments(self) -> dict:
        """The arguments of a stock call beyond prompt, steps and guidance."""

    def predict_x0(self, network, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.clean(x_t, self.call(network, x_t, t, cond), t)

    def call(self, network, x_t: Tensor, t: Tensor, cond: Cond, **more) -> Tensor:
        """The first output of a network, or of what is called like it, float32; `more` are further
        keyword arguments.
        """
        dtype = self.config.torch_dtype
        with torch.autocast(
            x_t.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False
        ):  # a cache would hold all weights that are cast
            return network(
                **self.inputs(x_t.to(dtype), t, self._cast(cond)), **more, return_dict=False
            )[0].float()

    def fresh_network(self) -> nn.Module:
        return self._part(self.spec.network_class, self.spec.network_folder).requires_grad_(False)

    def _cast(self, cond: Cond) -> Cond:
        return Cond(
            {
                name: x.to(self.config.torch_dtype) if x.is_floating_point() else x
                for name, x in cond.items()
            }
        )

    def _part(
        self, kind: type[ModelMixin], name: str, dtype: torch.dtype | None = None
    ) -> nn.Module:
        # Often only some parts of a model have the variant; for whole pipelines the library looks
        # itself.
        variant = self.config.variant
        if variant and not any((self.folder / name).glob(f"*.{variant}*")):
            variant = None
        # straight to the device: on the host is never more than one file of the weights
        return kind.from_pretrained(
            self.folder,
            subfolder=name,
            dtype=dtype or self.config.torch_dtype,
            variant=variant,
            device_map=self.device,
        ).eval()

    def _pipeline(self, *without: str, **given: nn.Module) -> DiffusionPipeline:
        pipeline = getattr(diffusers, self.pipeline_class).from_pretrained(
            self.folder,
            **dict.fromkeys(without),
            **given,
            **self.pipeline_options,
            dtype=self.config.torch_dtype,
            variant=self.config.variant,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self.device)

    @property
    def text(self) -> DiffusionPipeline:
        """The pipeline with nothing but its text encoders, loaded on first use."""
        if self._text is None:
            self._text = self._pipeline(self.spec.network_folder, "vae")
        return self._text

    @property
    def vae(self) -> nn.Module:
        """The autoencoder, loaded on first use."""
        if self._vae is None:
            self._vae = self._part(
                self.spec.vae_class, "vae", self.spec.vae_dtype(self.folder, self.config)
            )
            if self.config.tiling:
                self._vae.enable_tiling()
        return self._vae

    def release_text(self) -> None:
        self._text = None

    def release_vae(self) -> None:
        self._vae = None

    def text_settings(self) -> tuple[str, ...]:
        """Settings that change what prompts are encoded to."""
        return ()

    def text_fingerprint(self) -> str:
        folders = [
            self.folder / part for part in self.spec.text_parts if (self.folder / part).is_dir()
        ]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        return file_fingerprint(files, self.config.dtype, *self.text_settings())

    def video_fingerprint(self) -> str:
        files = [path for path in (self.folder / "vae").iterdir() if path.is_file()]
        tiled = ["tiled"] if self.config.tiling else []
        return file_fingerprint(
            files,
            type(self).__name__,
            self.config.dtype,
            str(self.size),
            str(self.latent_shape()),
            *tiled,
        )

    def stock_pipeline(self, network: nn.Module | None = None) -> DiffusionPipeline:
        return self._pipeline(
            *self.spec.text_parts,
            "vae",
            **({} if network is None else {self.spec.network_folder: network}),
        )

    def absent_parts(self) -> list[str]:
        """Components that the folder leaves out, though its pipeline has a place for them."""
        return []

    def whole_pipeline(self) -> DiffusionPipeline:
        return self._pipeline(
            *self.absent_parts(), **{self.spec.network_folder: self.network, "vae": self.vae}
        )

    def stock_videos(
        self, pipeline: DiffusionPipeline, prompts: list[str], *, steps: int, cfg: float
    ):
        return pipeline(
            prompts,
            guidance_scale=cfg,
            num_inference_steps=steps,
            return_dict=False,
            **self.stock_arguments(),
        )[0]

    def stock_latents(
        self,
        pipeline: DiffusionPipeline,
        z: Tensor,
        cond: Cond,
        *,
        steps: int,
        cfg: float = 1.0,
        null: Cond | None = None,
    ) -> Tensor:
        conds = dict(self._cast(cond))
        if cfg != 1.0:
            conds |= {
                f"negative_{name}": x.expand(len(z), *x.shape[1:])
                for name, x in self._cast(null).items()
            }
            conds["negative_prompt"] = (
                None  # one pipeline's default is "", which excludes embeddings
            )
        return pipeline(
            **conds,
            latents=z.to(self.config.torch_dtype),
            guidance_scale=cfg,
            num_inference_steps=steps,
            output_type="latent",
            return_dict=False,
            **self.stock_arguments(),
        )[0].float()

    def stock_call(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.stock_arguments().items())

    def save_lora(self, folder: Path, layers: dict[str, Tensor], config: LoraConfig) -> None:
        metadata = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
        }
        part = self.spec.network_folder
        getattr(diffusers, self.pipeline_class).save_lora_weights(
            folder, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": metadata}
        )

    @classmethod
    def read_lora(cls, folder: Path, network: nn.Module) -> tuple[dict[str, Tensor], float | None]:
        check_lora(folder, network, cls.lora_prefix, file=cls.lora_file)
        with safe_open(folder / cls.lora_file, framework="pt") as file:
            layers = {
                key.removeprefix(f"{cls.lora_prefix}."): file.get_tensor(key) for key in file.keys()
            }
            return layers, cls.read_alpha(folder, file.metadata() or {})

    @classmethod
    def read_alpha(cls, folder: Path, metadata: dict[str, str]) -> float | None:
        """What a LoRA file says of its alpha, or None."""
        return json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}")).get(
            f"{cls.lora_prefix}.lora_alpha"
        )

    def load_lora(self, pipeline: DiffusionPipeline, folder: Path) -> None:
        check_lora(
            folder,
            getattr(pipeline, self.spec.network_folder),
            self.lora_prefix,
            file=self.lora_file,
        )
        try:
            self.add_lora(pipeline, folder)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(
                f"{folder}: no LoRA of {self.config.path} ({str(error).splitlines()[0]})"
            ) from error
        pipeline.scheduler = load_scheduler(folder)

    @staticmethod
    def add_lora(pipeline: DiffusionPipeline, folder: Path) -> None:
        """Give the stock pipeline a LoRA that fits, as `load_code` tells users to."""
        pipeline.load_lora_weights(folder)


def check_lora(folder: Path, network: nn.Module, prefix: str, *, file: str = LORA_FILE) -> None:
    """ValueError if the LoRA in `folder` does not fit `network`; of layers it does not know,
    diffusers only warns.
    """
    path, layers = folder / file, dict(network.named_modules())
    if not path.is_file():
        raise ValueError(f"{folder} has no {file}: give the lora/ folder of a finished run")
    with safe_open(path, framework="pt") as tensors:
        shapes = {key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
    for key, shape in shapes.items():
        name, _, factor = key.removeprefix(f"{prefix}.").partition(".lora_")
        layer = list(getattr(layers.get(name), "weight", torch.empty(0)).shape)
        fits = shape[1:] == layer[1:] if factor.startswith("A") else shape[:1] == layer[:1]
        if not layer or layer == [0] or not fits:
            there = (
                f"the layer there is {layer}"
                if layer != [0]
                else f"{type(network).__name__} has no such layer"
            )
            raise ValueError(
                f"{path}: {key} is {shape}, {there}: a LoRA fits only the model it was trained on,"
                " see the card beside it"
            )
