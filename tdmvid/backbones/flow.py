"""What the rectified-flow families share: one transformer that predicts the velocity eps - x0.

A family names its classes of diffusers and its conditioning, and says what it makes of a size;
the network is told 1000 t, with t as it is: nothing is rounded to an entry of a table.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from torch import Tensor

from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from ..diffusion.process import RectifiedFlow
from .base import Backbone, ClipSize, ModelConfig, check_lora, file_fingerprint
from .flow_scheduler import flow_scheduler_for, load_flow_scheduler


class FlowBackbone(Backbone):
    """A pipeline folder of a rectified-flow transformer as a backbone."""

    pipeline_type: ClassVar[type[DiffusionPipeline]]
    network_type: ClassVar[type[ModelMixin]]
    vae_type: ClassVar[type[ModelMixin]]
    text_parts: ClassVar[tuple[str, ...]]
    """Text encoders and tokenizers, by their names in `model_index.json`."""
    optional_parts: ClassVar[tuple[str, ...]] = ()
    """Those of them that a folder may leave out."""
    text_length: ClassVar[int]
    """What a stock call reads of a prompt, `max_sequence_length`, unless told otherwise."""
    inputs: ClassVar[dict[str, str]]
    """The network's conditioning arguments, and what the pipeline (and our Cond) calls them."""

    def __init__(self, folder: Path, config: ModelConfig, size: ClipSize, device: torch.device | str):
        self.folder, self.config, self.size, self.device = folder, config, size, torch.device(device)
        self.process = self.read_process(folder)
        self.network = self._load(self.network_type, self.network_folder, config.torch_dtype)
        self._shape = self.latent_shape_of(self.network, folder, size)
        self._pipeline = self._vae = None

    def _load(self, kind: type[ModelMixin], part: str, dtype: torch.dtype) -> ModelMixin:
        variant = self.config.variant  # often only some parts of a model have it; of pipelines the library looks itself
        variant = variant if variant and any((self.folder / part).glob(f"*.{variant}*")) else None
        return kind.from_pretrained(self.folder, subfolder=part, dtype=dtype, variant=variant).to(self.device).eval().requires_grad_(False)

    def latent_shape(self) -> tuple[int, ...]:
        return self._shape

    def predict_x0(self, network, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = self.config.torch_dtype
        given = {argument: cond[name].to(dtype) for argument, name in self.inputs.items()}
        with torch.autocast(x_t.device.type, dtype, enabled=dtype != torch.float32):
            velocity = network(hidden_states=x_t.to(dtype), timestep=self.process.timestep(t), **given, return_dict=False)[0]
        return self.process.x0_from_velocity(x_t, velocity.float(), t)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        if self._pipeline is None:  # with the network, whose config is asked for the width of a text encoder that is left out
            self._pipeline = self.pipeline_type.from_pretrained(
                self.folder, transformer=self.network, vae=None, **dict.fromkeys(set(self.text_parts) - set(self._own_text_parts())),
                dtype=self.config.torch_dtype, variant=self.config.variant,
            ).to(self.device)
        with torch.no_grad():
            return self.call_encoder(self._pipeline, prompts)

    def release_text(self) -> None:
        self._pipeline = None

    def _own_text_parts(self) -> list[str]:
        index = json.loads((self.folder / "model_index.json").read_text())
        there = {part for part in self.optional_parts if index.get(part, [None])[0] and (self.folder / part).is_dir()}
        return [part for part in self.text_parts if part not in self.optional_parts or part in there]

    def text_fingerprint(self) -> str:
        parts = self._own_text_parts()
        files = [path for part in parts for path in (self.folder / part).iterdir() if path.is_file()]
        return file_fingerprint(files, self.config.dtype, str(self.text_length), *parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        if self._vae is None:  # in float32, which Wan's needs; decoding is rare
            self._vae = self._load(self.vae_type, "vae", torch.float32)
        latents = self.unscaled(latents.float(), self._vae.config)
        clips = torch.cat([self._vae.decode(one).sample.clamp(-1, 1) for one in latents.split(1)])
        return clips if clips.dim() == 5 else clips.unsqueeze(2)

    def student_scheduler(self, grid: TimeGrid) -> FlowMatchEulerDiscreteScheduler:
        return flow_scheduler_for(grid, self.process)

    def stock_pipeline(self) -> DiffusionPipeline:
        pipeline = self.pipeline_type.from_pretrained(
            self.folder, **dict.fromkeys(self.text_parts), vae=None, dtype=self.config.torch_dtype, variant=self.config.variant
        )
        pipeline.set_progress_bar_config(disable=True)
        self.set_compression(pipeline)
        return pipeline.to(self.device)

    def load_lora(self, pipeline: DiffusionPipeline, folder: Path) -> None:
        check_lora(folder, pipeline.transformer, self.network_folder)
        try:
            pipeline.load_lora_weights(folder)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{folder}: no LoRA of {self.config.path} ({str(error).splitlines()[0]})") from error
        pipeline.scheduler = load_flow_scheduler(folder)

    def stock_latents(
        self, pipeline: DiffusionPipeline, z: Tensor, cond: Cond, *, steps: int, cfg: float = 1.0, null: Cond | None = None
    ) -> Tensor:
        dtype = self.config.torch_dtype
        given = dict(cond.to(dtype))
        if cfg != 1.0:
            given |= {f"negative_{name}": tensor for name, tensor in null.expand(len(z)).to(dtype).items()}
        return pipeline(
            **given, **self.arguments(), latents=z.to(dtype), num_inference_steps=steps, guidance_scale=cfg,
            output_type="latent", return_dict=False,
        )[0].float()

    def stock_call(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments().items())

    def arguments(self) -> dict[str, int]:
        """Size and text length, as arguments of a stock call."""
        return {"height": self.size.height, "width": self.size.width, "max_sequence_length": self.text_length}

    @classmethod
    def empty_network(cls, folder: Path) -> ModelMixin:
        return cls.network_type.from_config(cls.network_type.load_config(folder, subfolder=cls.network_folder))

    @staticmethod
    def read_process(folder: Path) -> RectifiedFlow:
        scheduler = FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
        name = scheduler["_class_name"]
        if not name.startswith("FlowMatch") and scheduler.get("prediction_type") != "flow_prediction":
            raise ValueError(f"{folder}/scheduler is a {name} that predicts {scheduler.get('prediction_type')!r}: this family needs a flow's velocity")
        return RectifiedFlow(float(scheduler.get("num_train_timesteps", 1000)))

    # What a family adds to the contract.

    @staticmethod
    @abstractmethod
    def latent_shape_of(network: ModelMixin, folder: Path, size: ClipSize) -> tuple[int, ...]:
        """Shape of one latent sample; ValueError names the rule that `size` breaks."""

    @abstractmethod
    def call_encoder(self, pipeline: DiffusionPipeline, prompts: list[str]) -> Cond:
        """The pipeline's own embeddings of prompts."""

    @abstractmethod
    def unscaled(self, latents: Tensor, vae: Any) -> Tensor:
        """Latents as the autoencoder wants them, by its config."""

    @abstractmethod
    def set_compression(self, pipeline: DiffusionPipeline) -> None:
        """Tell a pipeline without autoencoder how latents compress."""
