"""The stock diffusers pipeline of a teacher: what users sample with, and the reference of exports.

Shapes: B batch. A latent sample is [B, ...] in the layout of the family's network.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from ..config.json_files import read_object
from ..data.reading import reading
from ..diffusion.denoiser import Cond
from .dtype import torch_dtype
from .text_lora import with_text_lora
from .weight_files import encoder_class, load_whole, pipeline_variants, weights_variant

if TYPE_CHECKING:
    from .pipeline import PipelineBackbone

AGAIN = "copy or download the folder again"
"""Advice for a model folder whose files cannot be loaded."""


class StockPipeline(ABC):
    """Builds and calls the stock pipeline of a backbone.

    It holds nothing but the backbone and is created at each use (`backbone.stock`): a reference
    from the backbone would keep the weights alive until the next garbage collection.
    """

    output: ClassVar[str] = "frames"
    """Field of the stock pipeline's result."""
    one_image_a_call: ClassVar[bool] = False
    """Whether a stock call accepts only one given image."""
    guidance_argument: ClassVar[str] = "guidance_scale"
    """Argument of a stock call that holds the guidance scale."""
    unguided: ClassVar[float] = 1.0
    """Value of `guidance_argument` in a stock call that turns guidance off."""
    takes_negative_text: ClassVar[bool] = True
    """Whether a stock call has an argument `negative_prompt`."""
    needs_negative_text: ClassVar[bool] = False
    """Whether a stock call from prompts is guided only if it is given a `negative_prompt`."""
    even_sigmas: ClassVar[bool] = False
    """Whether a stock call passes evenly spaced sigmas to its scheduler instead of a step count."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Packages beside diffusers' own that the stock call needs to read a prompt as in training."""
    preparation: ClassVar[tuple[str, ...]] = ()
    """Lines of Python that turn guidance off in a pipeline `pipe` whose call does not."""
    options: ClassVar[dict[str, Any]] = {}
    """Arguments for loading the pipeline. None marks a component that is never needed."""

    def __init__(self, backbone: PipelineBackbone):
        self.backbone = backbone

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a stock call apart from prompt, steps and guidance."""

    def absent_parts(self) -> list[str]:
        """Return components of the pipeline that the folder lacks."""
        return []

    @abstractmethod
    def set_scales(self, pipeline: Any) -> None:
        """Set the latent compression on a pipeline without an autoencoder to read it from."""

    def guidance(self, cfg: float) -> dict[str, float]:
        """Return the argument of a stock call for a guidance of `cfg`, where 1 means none."""
        return {self.guidance_argument: cfg - 1.0 + self.unguided}

    def guidance_code(self) -> str:
        """Return the argument of a stock call that turns guidance off, as Python source."""
        return f"{self.guidance_argument}={self.unguided}"

    def default_guidance(self) -> float:
        """Return the guidance of a stock call without the argument, where 1 means none."""
        pipeline = getattr(diffusers, self.backbone.pipeline_class)
        default = inspect.signature(pipeline.__call__).parameters[self.guidance_argument].default
        return float(default) + 1.0 - self.unguided

    @staticmethod
    def set_guidance(pipeline: Any, cfg: float) -> None:
        """Set what a pipeline itself holds about guidance, before a call with `cfg`.

        Does nothing if all of it is in the arguments of the call.
        """
        assert pipeline is not None and cfg >= 1

    def negative_text(self, count: int, cfg: float) -> dict[str, list[str]]:
        """Return the negative prompts that `count` prompts of a stock call need to be guided."""
        return {"negative_prompt": [""] * count} if self.needs_negative_text and cfg != 1 else {}

    def arguments_code(self) -> str:
        """Return `arguments` as Python source, e.g. "height=512, width=512"."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments().items())

    def load(self, *without: str, **given: nn.Module) -> Any:
        """Load the pipeline.

        Args:
            without: Components to leave out.
            given: Components to use instead of loading them.

        Returns:
            The diffusers pipeline on the backbone's device, with CPU offload if `idle_expert` is
            "host".

        Raises:
            ValueError: Files are missing or damaged.
        """
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

    def variants(self, *without: str) -> dict[str, str | None]:
        """Return the variant of the pipeline's weight files as `default`, and others by component.

        Args:
            without: Components to leave out.
        """
        folder = self.backbone.folder
        unused = [part for part, value in self.options.items() if value is None]
        left_out = {*without, *self.absent_parts(), *unused}
        index = read_object(folder / "model_index.json")
        parts = [part for part in index if part not in left_out]
        return pipeline_variants(folder, parts, self.backbone.config.variant)

    def _encoders(self, without: list[str]) -> dict[str, nn.Module]:
        """Load text and image encoders and check that they are complete; diffusers does not."""
        backbone = self.backbone
        spec, index, made = backbone.spec, read_object(backbone.folder / "model_index.json"), {}
        for part in (*spec.text_parts, *spec.image_parts):
            kind, folder = encoder_class(index.get(part)), backbone.folder / part
            if kind is None or part in without or not folder.is_dir():
                continue
            with reading(folder, advice=AGAIN):
                made[part] = load_whole(
                    kind,
                    folder,
                    # the pipelines' examples load image encoders in float32
                    dtype=torch.float32
                    if part in spec.image_parts
                    else torch_dtype(backbone.config),
                    variant=weights_variant(folder, backbone.config.variant),
                )
        return made

    def pipeline(self, network: nn.Module | None = None) -> Any:
        """Load the pipeline without text encoders, image encoders and autoencoder.

        Args:
            network: The network to sample with; None loads the teacher's again.
        """
        spec = self.backbone.spec
        given = {} if network is None else spec.named_components(network)
        pipeline = self.load(*spec.text_parts, *spec.image_parts, "vae", **given)
        self.set_scales(pipeline)
        return pipeline

    def whole_pipeline(self) -> Any:
        """Load the complete pipeline around the backbone's network and autoencoder."""
        backbone = self.backbone
        given = backbone.spec.named_components(backbone.network) | {"vae": backbone.vae}
        return with_text_lora(self.load(*self.absent_parts(), **given), backbone.text_lora)

    def encoding_pipeline(self) -> Any:
        """Load the plain teacher's pipeline without autoencoder, but with text encoders."""
        pipeline = self.load(*self.absent_parts(), "vae")
        self.set_scales(pipeline)
        return pipeline

    def conditions(self, pipeline: Any, cond: Cond) -> dict[str, Any]:
        """Return the arguments of a stock call that carry the conditions, by name.

        Args:
            pipeline: The stock pipeline; a family may adjust it.
            cond: Conditions, [B, ...] each.
        """
        return dict(cond)

    def negative_conditions(self, null: Cond) -> dict[str, Any]:
        """Return the null conditions, [B, ...] each, by the names of `conditions`."""
        return dict(null)

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
        """Sample with a stock pipeline and return its final latents.

        Args:
            pipeline: Made by `pipeline`.
            z: Initial noise, [B, ...].
            cond: Conditions of the prompts, B rows each.
            steps: Number of sampling steps.
            cfg: Guidance scale; 1 means no guidance.
            null: Condition of the empty prompt; required with guidance.
            guidance: Further arguments of the call, such as `use_dynamic_cfg`.

        Returns:
            Clean latents, [B, ...] float32.
        """
        backbone = self.backbone
        self.set_guidance(pipeline, cfg)
        conds = self.conditions(pipeline, backbone.cast(cond))
        if cfg != 1.0:
            assert null is not None, "guidance needs the null condition"
            rows = {name: x.expand(len(z), *x.shape[1:]) for name, x in backbone.cast(null).items()}
            for name, given in self.negative_conditions(Cond(rows)).items():
                conds[f"negative_{name}"] = given
            # one pipeline defaults to "", which it does not accept beside embeddings
            conds |= {"negative_prompt": None} if self.takes_negative_text else {}
        out = pipeline(
            **conds,
            latents=self.write_latents(z),
            num_inference_steps=steps,
            output_type="latent",
            return_dict=False,
            **self.guidance(cfg),
            **guidance,
            **self.arguments(),
        )[0]
        return self.read_latents(out.float())

    def write_latents(self, z: Tensor) -> Tensor:
        """Return noise [B, ...] float32 in the layout and dtype that a stock call takes."""
        return z.to(torch_dtype(self.backbone.config))

    def read_latents(self, out: Tensor) -> Tensor:
        """Return a call's latents [B, ...] in the layout of the family's network."""
        return out

    def given_images(self, images: Tensor) -> Any:
        """Return images [B, 3, H, W] in [-1, 1] as a stock call takes them."""
        return (images + 1) / 2

    def videos(
        self,
        pipeline: Any,
        prompts: list[str],
        *,
        steps: int,
        cfg: float,
        images: Tensor | None = None,
    ) -> Any:
        """Sample with a complete stock pipeline, as a user does.

        Args:
            pipeline: Made by `whole_pipeline`.
            prompts: B prompts.
            steps: Number of sampling steps.
            cfg: Guidance scale.
            images: First frames [B, 3, H, W] in [-1, 1], if the family takes images.

        Returns:
            The pipeline's own type of videos or images, one per prompt.
        """
        if images is not None and self.one_image_a_call and len(images) > 1:
            rows = zip(prompts, images.split(1), strict=True)
            return [
                self.videos(pipeline, [prompt], steps=steps, cfg=cfg, images=image)[0]
                for prompt, image in rows
            ]
        given = {} if images is None else {"image": self.given_images(images)}
        self.set_guidance(pipeline, cfg)
        return pipeline(
            prompt=list(prompts),  # some pipelines change the list
            **given,
            **self.negative_text(len(prompts), cfg),
            **self.guidance(cfg),
            num_inference_steps=steps,
            return_dict=False,
            **self.arguments(),
        )[0]
