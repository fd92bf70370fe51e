"""The stock diffusers pipeline of a teacher: what users sample with, and what exports are held to.

Shapes: B batch. A latent sample is [B, ...], as the family's network takes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
from torch import Tensor, nn

from ..config.json_files import read_object
from ..data.reading import reading
from ..diffusion.denoiser import Cond
from .dtype import torch_dtype
from .weight_files import encoder_class, load_whole, weights_variant

if TYPE_CHECKING:
    from .pipeline import PipelineBackbone

AGAIN = "copy or download the folder again"
"""What to do about a model folder whose files do not load."""


class StockPipeline(ABC):
    """Build and call the stock pipeline of a backbone.

    It holds nothing but the backbone, and is made anew at each use (`backbone.stock`): a reference
    back from the backbone would keep the weights until the next garbage collection.
    """

    output: ClassVar[str] = "frames"
    """The field of a stock pipeline's result."""
    one_image_a_call: ClassVar[bool] = False
    """Whether a stock call takes one given image."""
    options: ClassVar[dict[str, Any]] = {}
    """Of every loading of the pipeline; None for a component that is never needed."""

    def __init__(self, backbone: PipelineBackbone):
        self.backbone = backbone

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a stock call beyond prompt, steps and guidance."""

    def absent_parts(self) -> list[str]:
        """Return components of the pipeline that the folder leaves out."""
        return []

    @abstractmethod
    def set_scales(self, pipeline: Any) -> None:
        """Tell a pipeline without autoencoder what it would read from one: how latents compress."""

    def arguments_code(self) -> str:
        """Return `arguments` as Python source, e.g. "height=512, width=512"."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())

    def load(self, *without: str, **given: nn.Module) -> Any:
        """Load the pipeline: without some components, and with others as they are given."""
        backbone = self.backbone
        given = self._encoders([*without, *given]) | given
        if not {*backbone.spec.components(backbone.folder)} & {*without, *given}:
            given |= backbone.spec.named_components(backbone.fresh_network())
        with reading(backbone.folder, advice=AGAIN):
            pipeline = getattr(diffusers, backbone.pipeline_class).from_pretrained(
                backbone.folder,
                **dict.fromkeys(without),
                **given,
                **self.options,
                dtype=torch_dtype(backbone.config),
                variant=backbone.config.variant,
            )
        pipeline.set_progress_bar_config(disable=True)
        if backbone.config.idle_expert == "host" and backbone.device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=backbone.device)
            return pipeline
        return pipeline.to(backbone.device)

    def _encoders(self, without: list[str]) -> dict[str, nn.Module]:
        """Load the text encoders, each whole; the library would not say what its files lack."""
        backbone = self.backbone
        index, made = read_object(backbone.folder / "model_index.json"), {}
        for part in backbone.spec.text_parts:
            kind, folder = encoder_class(index.get(part)), backbone.folder / part
            if kind is None or part in without or not folder.is_dir():
                continue
            with reading(folder, advice=AGAIN):
                made[part] = load_whole(
                    kind,
                    folder,
                    dtype=torch_dtype(backbone.config),
                    variant=weights_variant(folder, backbone.config.variant),
                )
        return made

    def pipeline(self, network: nn.Module | None = None) -> Any:
        """Load the pipeline without text encoder and autoencoder.

        Args:
            network: what it samples with; None loads the teacher's once more.
        """
        spec = self.backbone.spec
        given = {} if network is None else spec.named_components(network)
        pipeline = self.load(*spec.text_parts, "vae", **given)
        self.set_scales(pipeline)
        return pipeline

    def whole_pipeline(self) -> Any:
        """Load the pipeline with all its parts, around the backbone's network and autoencoder."""
        backbone = self.backbone
        given = backbone.spec.named_components(backbone.network) | {"vae": backbone.vae}
        return self.load(*self.absent_parts(), **given)

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the arguments of a stock call that stand for conditions: each by its own name."""
        return dict(cond)

    def latents(
        self,
        pipeline: Any,
        z: Tensor,
        cond: Cond,
        *,
        steps: int,
        cfg: float = 1.0,
        null: Cond | None = None,
        guidance: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        """Sample a pipeline's final latents, [B, ...] float32.

        Args:
            z: noise, [B, ...].
            cond: the prompts' conditions.
            cfg: the guidance scale; 1 is no guidance.
            null: the condition of the empty prompt; needed with guidance.
            guidance: further arguments of the call, such as `use_dynamic_cfg`.
        """
        backbone = self.backbone
        conds = self.conditions(pipeline, backbone.cast(cond))
        if cfg != 1.0:
            assert null is not None, "guidance needs the null condition"
            for name, x in backbone.cast(null).items():
                conds[f"negative_{name}"] = x.expand(len(z), *x.shape[1:])
            # one pipeline's default is "", which excludes embeddings
            conds["negative_prompt"] = None
        return pipeline(
            **conds,
            latents=z.to(torch_dtype(backbone.config)),
            guidance_scale=cfg,
            num_inference_steps=steps,
            output_type="latent",
            return_dict=False,
            **guidance,
            **self.arguments(),
        )[0].float()

    def videos(
        self,
        pipeline: Any,
        prompts: list[str],
        *,
        steps: int,
        cfg: float,
        images: Tensor | None = None,
    ) -> Any:
        """Return what a user gets from one call of a whole pipeline.

        Args:
            images: first frames [B, 3, H, W] in [-1, 1], where the family takes images.

        Returns:
            The pipeline's own kind of videos or images, one a prompt.
        """
        if images is not None and self.one_image_a_call and len(images) > 1:
            rows = zip(prompts, images.split(1), strict=True)
            return [
                self.videos(pipeline, [prompt], steps=steps, cfg=cfg, images=image)[0]
                for prompt, image in rows
            ]
        given = {} if images is None else {"image": (images + 1) / 2}
        return pipeline(
            prompt=prompts,
            **given,
            guidance_scale=cfg,
            num_inference_steps=steps,
            return_dict=False,
            **self.arguments(),
        )[0]
