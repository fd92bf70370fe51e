"""ComfyUI: a LoRA file, and a workflow in API format with exactly the trained timesteps.

The workflow loads the base, applies the LoRA at strength 1 and samples without guidance. It uses
only nodes that are part of ComfyUI (nodes.py and comfy_extras/). With explicit sigmas, its `euler`
sampler, and for CogVideoX `VOIDSampler`, computes the student's deterministic step, straight
towards the predicted x0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...adapters.layouts import COMFYUI
from ...backbones.base import Backbone
from ...backbones.cogvideox import Clip
from ...backbones.experts import Experts
from ...data.files import write_json
from ...diffusion.grid import TimeGrid
from ...diffusion.process import RectifiedFlow
from ..student import Student
from .base import Consumer, register

SIGMA_MAX = 4518.76
"""ComfyUI's noise level where alpha is 0 (comfy/model_sampling.py, zero terminal SNR)."""
LOW_NOISE = "BASE_LOW_NOISE.safetensors"
"""Placeholder for the file name of the second expert, which the user replaces."""
START_TOLERANCE = 2**-9
"""Relative change of the first state that is less than the rounding of bfloat16."""
WAN22_CHANNELS = 48
"""Latent channels of Wan 2.2's own autoencoder, which needs another node for empty latents."""

Node = tuple[str, dict]
"""Class of a node and its inputs. An input [name, i] is output i of another node."""


@register
class ComfyUI(Consumer):
    """Loads a LoRA from `models/loras` and samples with the workflow beside it."""

    layout = COMFYUI

    def card_text(self, facts: dict) -> str:
        """Return where the LoRA goes, and the workflow or why there is none."""
        flow = "`comfyui/workflow.json` is a workflow in API format with the trained sigmas"
        if facts.get("comfyui_lack"):
            flow = (
                "without a workflow, because ComfyUI itself cannot sample this student correctly:"
                f" {facts['comfyui_lack']}"
            )
        return f"ComfyUI (copy it to `models/loras`; {flow})"

    def write_extras(self, loras: list[Path], student: Student) -> dict:
        """Write `workflow.json` beside the LoRA, unless ComfyUI cannot sample the student.

        Returns:
            `comfyui_lack`: why there is no workflow; empty if there is one.
        """
        lack = workflow_lack(student.backbone, student.grid)
        if not lack:
            prompt = (*student.reference.prompts, "a prompt")[0]
            names = [lora.name for lora in loras]
            nodes = build_workflow(student.backbone, student.grid, names, prompt)
            write_json(loras[0].with_name("workflow.json"), nodes)
        return {"comfyui_lack": lack}


def _find_no_lack(backbone: Backbone) -> str:
    return ""


def _need_no_patch(backbone: Backbone) -> Node | None:
    return None


def _ask_for_all_frames(backbone: Backbone) -> tuple[int, int]:
    return backbone.size.frames, 0


def _take_its_latent(backbone: Backbone) -> Node | None:
    return None


@dataclass(frozen=True)
class _Model:
    """How ComfyUI samples the base of one pipeline class."""

    latent: str
    """Node that creates empty latents."""
    other_latent: Callable[[Backbone], Node | None] = _take_its_latent
    """Node that creates empty latents for a base with another autoencoder."""
    text: str = ""
    """Type of the CLIPLoader; empty if the base is one checkpoint file."""
    encoders: int = 1
    """Number of text encoders in files of their own, 1 or 2."""
    conditioning: Callable[[Backbone], Node | None] = _need_no_patch
    """Node that adds to the embedded prompt what the network reads beside it."""
    sampler: Node = ("KSamplerSelect", {"sampler_name": "euler"})
    """Node for a deterministic step over explicit sigmas. For most models Euler equals DDIM."""
    lack: Callable[[Backbone], str] = _find_no_lack
    """Returns why ComfyUI cannot sample the base as it was trained; empty if it can."""
    patch: Callable[[Backbone], Node | None] = _need_no_patch
    """Node for settings that ComfyUI cannot read from the base's file."""
    frames: Callable[[Backbone], tuple[int, int]] = _ask_for_all_frames
    """Frames of the empty latents, and number of leading latent frames to cut before decoding."""


def _lack_of_cogvideox(backbone: Backbone) -> str:
    spec: Any = backbone.spec
    shift = spec.read_scheduler(backbone.folder).config.snr_shift_scale
    instead = "; use diffusers instead"
    if shift != 1:
        return (
            "it uses noise levels without snr_shift_scale for every CogVideoX, but this base has"
            f" {shift:g}{instead}"
        )
    if backbone.network.config.patch_size_t is None:
        return f"it stretches the position embeddings of every CogVideoX except 1.5{instead}"
    return ""


def _lack_of_pixart(backbone: Backbone) -> str:
    if backbone.network.use_additional_conditions:
        return ""
    return (
        "it treats a PixArt-alpha without size conditions as a PixArt-Sigma, whose latents have"
        " another scale"
    )


def _frames_of_cogvideox(backbone: Backbone) -> tuple[int, int]:
    clip = Clip.of(backbone.network, backbone.folder, backbone.size)
    return backbone.size.frames + clip.extra_frames * clip.temporal, clip.extra_frames


def _patch_unet(unet: Backbone) -> Node | None:
    backbone: Any = unet
    if backbone.prediction_type == "epsilon":
        return None
    scheduler = backbone.spec.read_scheduler(backbone.folder)
    return "ModelSamplingDiscrete", {
        "sampling": backbone.prediction_type,
        "zsnr": bool(scheduler.config.rescale_betas_zero_snr),
    }


def _latent_of_wan(backbone: Backbone) -> Node | None:
    if backbone.latent_shape()[0] == WAN22_CHANNELS:
        return "Wan22ImageToVideoLatent", {"vae": ["vae", 0]}
    return None


def _state_guidance(backbone: Backbone) -> Node | None:
    flux: Any = backbone
    return "FluxGuidance", {"guidance": float(flux.guidance)}


_UNET = _Model("EmptyLatentImage", patch=_patch_unet)
MODELS = {
    "CogVideoXPipeline": _Model(
        "EmptyHunyuanLatentVideo",  # 16 channels and the same compression
        text="cogvideox",
        # ComfyUI's CogVideoX expects unscaled x_t; other samplers scale it by sqrt(1 + sigma^2)
        sampler=("VOIDSampler", {}),
        lack=_lack_of_cogvideox,
        frames=_frames_of_cogvideox,
    ),
    "WanPipeline": _Model("EmptyHunyuanLatentVideo", other_latent=_latent_of_wan, text="wan"),
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionXLPipeline": _UNET,
    "StableDiffusion3Pipeline": _Model("EmptySD3LatentImage"),
    "PixArtAlphaPipeline": _Model("EmptyLatentImage", text="pixart", lack=_lack_of_pixart),
    # ComfyUI reads Z-Image's text encoder under the type of the architecture that it is based on
    "ZImagePipeline": _Model("EmptySD3LatentImage", text="lumina2"),
    "Flux2KleinPipeline": _Model("EmptyFlux2LatentImage", text="flux2"),
    "QwenImagePipeline": _Model("EmptySD3LatentImage", text="qwen_image"),
    "FluxPipeline": _Model(
        "EmptySD3LatentImage", text="flux", encoders=2, conditioning=_state_guidance
    ),
}
"""Pipeline class -> how ComfyUI samples its base."""


def workflow_lack(backbone: Backbone, grid: TimeGrid) -> str:
    """Return why ComfyUI cannot sample a student as it was trained; empty if it can.

    Args:
        backbone: The student's base.
        grid: Its times.
    """
    if backbone.pipeline_class not in MODELS:
        return f"there is no workflow for {backbone.pipeline_class} yet"
    model = MODELS[backbone.pipeline_class]
    return model.lack(backbone) or _lack_of_start(model, backbone, grid)


def _lack_of_start(model: _Model, backbone: Backbone, grid: TimeGrid) -> str:
    """Return how ComfyUI's first state differs from the student's, which is noise of variance 1.

    Below its largest noise level ComfyUI multiplies the noise by sigma (noise_scaling in
    comfy/model_sampling.py), because it adds it to an image. VOIDSampler does not.
    """
    _, [scale] = backbone.process.alpha_sigma(torch.tensor(grid.descending()[:1]))
    if model.sampler[0] == "VOIDSampler" or 1 - scale < START_TOLERANCE:
        return ""
    if not isinstance(backbone.process, RectifiedFlow) and grid.times[-1] == 1:
        return ""  # its largest noise level
    return (
        f"the trajectory starts at time {grid.times[-1]:.4g} from noise of variance 1, but its"
        f" samplers multiply the noise by {scale:.4g} there; use the diffusers file, or train with"
        " grid.start=1"
    )


def format_sigmas(backbone: Backbone, grid: TimeGrid) -> list[str]:
    """Format the student's noise levels as the ManualSigmas node reads them, without exponents.

    Levels are sigma / alpha, and for a flow sigma itself; a 0 is appended.

    Args:
        backbone: The student's base.
        grid: Its times.

    Returns:
        One list of numbers as text, or one for each expert.
    """
    alpha, sigma = backbone.process.alpha_sigma(torch.tensor(grid.descending()))
    flow = isinstance(backbone.process, RectifiedFlow)
    levels = sigma if flow else (sigma / alpha).clamp(max=SIGMA_MAX)
    texts, split = [*(f"{level:.9f}" for level in levels.tolist()), "0.0"], 0
    if isinstance(backbone.network, Experts):
        boundary = backbone.network.split.time
        split = sum(t >= boundary for t in grid.descending())
    if not 0 < split < grid.steps:
        return [", ".join(texts)]
    return [", ".join(texts[: split + 1]), ", ".join(texts[split:])]


def build_workflow(backbone: Backbone, grid: TimeGrid, loras: list[str], prompt: str) -> dict:
    """Build the workflow. File names of the base are placeholders that the user replaces.

    Args:
        backbone: The student's base.
        grid: Its times.
        loras: Name of the LoRA file in `models/loras`, or those of both experts.
        prompt: Text of the prompt node.

    Returns:
        Nodes by id, in ComfyUI's API format.
    """
    model = MODELS[backbone.pipeline_class]
    text, vae, nodes = _load_base(model)
    nodes["text"] = ("CLIPTextEncode", {"clip": text, "text": prompt})
    conditioning = ["text", 0]
    if more := model.conditioning(backbone):
        nodes["conditioning"] = (more[0], {"conditioning": ["text", 0], **more[1]})
        conditioning = ["conditioning", 0]
    patched = []
    for number, lora in enumerate(loras):
        end = f"_{number + 1}" if number else ""
        if end:
            nodes[f"model{end}"] = ("UNETLoader", {**nodes["model"][1], "unet_name": LOW_NOISE})
        nodes[f"lora{end}"] = (
            "LoraLoaderModelOnly",
            {"model": [f"model{end}", 0], "lora_name": lora, "strength_model": 1.0},
        )
        patch = model.patch(backbone)
        if patch:
            nodes[f"patch{end}"] = (patch[0], {"model": [f"lora{end}", 0], **patch[1]})
        patched.append([f"patch{end}" if patch else f"lora{end}", 0])
    sigmas = format_sigmas(backbone, grid)
    guiders = [("BasicGuider", {"model": one, "conditioning": conditioning}) for one in patched]
    nodes |= _sample(model, backbone, sigmas[0], guiders[0])
    if len(sigmas) > 1:
        nodes |= _go_on(sigmas[1], guiders[-1])
    nodes |= _decode(model, backbone, vae, "sample_2" if len(sigmas) > 1 else "sample")
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def _go_on(sigmas: str, guider: Node) -> dict[str, Node]:
    """Return nodes for the second expert's steps, which continue without new noise."""
    inputs = {
        "noise": ["noise_2", 0],
        "guider": ["guider_2", 0],
        "sampler": ["sampler", 0],
        "sigmas": ["sigmas_2", 0],
        "latent_image": ["sample", 0],
    }
    return {
        "noise_2": ("DisableNoise", {}),
        "guider_2": guider,
        "sigmas_2": ("ManualSigmas", {"sigmas": sigmas}),
        "sample_2": ("SamplerCustomAdvanced", inputs),
    }


def _load_base(model: _Model) -> tuple[list, list, dict[str, Node]]:
    """Return outputs of text encoder and autoencoder, and the nodes that load the base.

    The base is three or four files, or one checkpoint.
    """
    if not model.text:
        checkpoint = ("CheckpointLoaderSimple", {"ckpt_name": "BASE.safetensors"})
        return ["model", 1], ["model", 2], {"model": checkpoint}
    network = {"unet_name": "BASE.safetensors", "weight_dtype": "default"}
    encoder: Node = (
        "CLIPLoader",
        {"clip_name": "TEXT_ENCODER.safetensors", "type": model.text},
    )
    if model.encoders == 2:
        names = {f"clip_name{i}": f"TEXT_ENCODER_{i}.safetensors" for i in (1, 2)}
        encoder = "DualCLIPLoader", {**names, "type": model.text}
    nodes: dict[str, Node] = {
        "model": ("UNETLoader", network),
        "clip": encoder,
        "vae": ("VAELoader", {"vae_name": "VAE.safetensors"}),
    }
    return ["clip", 0], ["vae", 0], nodes


def _sample(model: _Model, backbone: Backbone, sigmas: str, guider: Node) -> dict[str, Node]:
    size = backbone.size
    latent: dict[str, Any] = {"width": size.width, "height": size.height, "batch_size": 1}
    if size.frames > 1:
        latent["length"] = model.frames(backbone)[0]
    kind, more = model.other_latent(backbone) or (model.latent, {})
    inputs = {
        "noise": ["noise", 0],
        "guider": ["guider", 0],
        "sampler": ["sampler", 0],
        "sigmas": ["sigmas", 0],
        "latent_image": ["latent", 0],
    }
    return {
        "latent": (kind, latent | more),
        "noise": ("RandomNoise", {"noise_seed": 0}),
        "guider": guider,
        "sampler": model.sampler,
        "sigmas": ("ManualSigmas", {"sigmas": sigmas}),
        "sample": ("SamplerCustomAdvanced", inputs),
    }


def _decode(model: _Model, backbone: Backbone, vae: list, sampled: str) -> dict[str, Node]:
    size, (length, cut) = backbone.size, model.frames(backbone)
    nodes: dict[str, Node] = {}
    if cut:
        part = {"samples": [sampled, 0], "dim": "t", "index": cut, "amount": length}
        nodes["cut"] = ("LatentCut", part)
    nodes["decode"] = ("VAEDecode", {"samples": ["cut" if cut else sampled, 0], "vae": vae})
    if size.frames == 1:
        nodes["save"] = ("SaveImage", {"images": ["decode", 0], "filename_prefix": "tdm"})
        return nodes
    nodes["video"] = ("CreateVideo", {"images": ["decode", 0], "fps": float(size.fps)})
    video = {"video": ["video", 0], "filename_prefix": "tdm", "format": "mp4", "codec": "h264"}
    nodes["save"] = ("SaveVideo", video)
    return nodes
