"""The files that users take away: a LoRA with its alpha, its scheduler, and a card; checked by loading it.

What is written is reloaded into a STOCK diffusers pipeline and sampled from the student's
own noise; above tolerance nothing is left behind (see diffusers' loaders/lora_pipeline.py).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from ..data.files import write_json, write_text
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from .lora import ADAPTER, LoraSettings
from .step_condition import baked

if TYPE_CHECKING:
    from ..backbones.base import Backbone

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Root mean square difference of latents between student and reloaded LoRA, relative to theirs, by base dtype."""


def export_lora(
    folder: Path, *, backbone: Backbone, module: nn.Module, weights: dict[str, Tensor], grid: TimeGrid,
    settings: LoraSettings, expected: Tensor, z: Tensor, cond: Cond,
) -> dict:
    """Write the LoRA bundle to `folder` and return the check's figures.

    weights: adapter tensors by parameter name; expected: [B, ...] the student's final latents
    from noise z under cond. RuntimeError if the reloaded LoRA differs by more than the tolerance.
    """
    with _replacing(folder) as aside:
        _write(aside, backbone, module, weights, grid)
        error = _difference(stock_latents(aside, backbone, z, cond, grid), expected, backbone)
        facts = {
            "error": error, "tolerance": TOLERANCE[backbone.config.dtype], "samples": len(z), "steps": grid.steps, "timesteps": _timesteps(backbone, grid),
            "rank": settings.rank, "alpha": settings.alpha, "files": sorted(p.name for p in aside.iterdir()),
        }
        write_json(aside / "export.json", facts)
        write_text(aside / "README.md", _card(backbone, grid, settings))
    return facts


@torch.no_grad()
def export_network(
    folder: Path, *, backbone: Backbone, weights: dict[str, Tensor], grid: TimeGrid, expected: Tensor, z: Tensor, cond: Cond,
) -> float:
    """Write a student of whole-network training as a diffusers model folder with its scheduler; the check's relative difference.

    weights: all parameters by name; expected, z, cond and RuntimeError as in `export_lora`.
    """
    with _replacing(folder) as aside:
        network = copy.deepcopy(backbone.network)  # for its buffers
        network.load_state_dict(weights, strict=False)
        network.save_pretrained(aside)
        backbone.student_scheduler(grid).save_pretrained(aside)
        pipeline = backbone.stock_pipeline()
        reloaded = type(network).from_pretrained(aside, dtype=backbone.config.torch_dtype).to(z.device)
        pipeline.register_modules(**{backbone.network_folder: reloaded})
        pipeline.scheduler = backbone.student_scheduler(grid)
        return _difference(backbone.stock_latents(pipeline, z, cond, steps=grid.steps), expected, backbone)


def _difference(found: Tensor, expected: Tensor, backbone: Backbone) -> float:
    error, tolerance = ((found - expected).norm() / expected.norm()).item(), TOLERANCE[backbone.config.dtype]
    if not error <= tolerance:
        raise RuntimeError(f"the export, reloaded by stock diffusers, differs from the student by {error:.2e} of its size (tolerance {tolerance:.0e})")
    return error


def _write(folder: Path, backbone: Backbone, module: nn.Module, weights: dict[str, Tensor], grid: TimeGrid) -> None:
    state = get_peft_model_state_dict(module, state_dict=weights, adapter_name=ADAPTER)
    state, config = baked(state, module.peft_config[ADAPTER], module, weights, grid.steps)
    backbone.save_lora(folder, {k: v.contiguous().cpu() for k, v in state.items()}, config)
    backbone.student_scheduler(grid).save_pretrained(folder)


@torch.no_grad()
def stock_latents(folder: Path, backbone: Backbone, z: Tensor, cond: Cond, grid: TimeGrid) -> Tensor:
    """The final latents of the stock pipeline with the LoRA and scheduler of `folder`: as `z`."""
    pipeline = backbone.stock_pipeline()
    backbone.load_lora(pipeline, folder)
    return backbone.stock_latents(pipeline, z, cond, steps=grid.steps)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write, which takes the place of `folder` when the block ends without an error, and else is gone."""
    aside, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _timesteps(backbone: Backbone, grid: TimeGrid) -> list[float]:
    return backbone.process.timestep(torch.tensor(grid.descending())).tolist()


def _card(backbone: Backbone, grid: TimeGrid, settings: LoraSettings) -> str:
    size, config, scheduler = backbone.size, backbone.config, backbone.student_scheduler(grid)
    module = "diffusers" if hasattr(diffusers, type(scheduler).__name__) else type(scheduler).__module__
    name, made = type(scheduler).__name__, "video" if backbone.output == "frames" else "image"
    imports = "\n".join([f"from diffusers import {backbone.pipeline_class}", *backbone.load_imports, f"from {module} import {name}"])
    return f"""# {grid.steps}-step LoRA for {config.path}

Distilled with tdmvid by Trajectory Distribution Matching (arXiv 2503.06674).

| setting | value |
|---|---|
| base | `{config.path}`, revision `{config.revision or "as found"}` |
| timesteps | {_timesteps(backbone, grid)} |
| sampler | {name}, deterministic (eta 0) |
| guidance scale | 1.0 (off) |
| LoRA scale | 1.0 (rank {settings.rank}, alpha {settings.alpha:g}, in the file's metadata) |
| frames x height x width | {size.frames} x {size.height} x {size.width}, {size.fps} fps |

```python
import torch
{imports}

pipe = {backbone.pipeline_class}.from_pretrained("{config.path}", dtype=torch.{config.dtype})
{backbone.load_code}
pipe.scheduler = {name}.from_pretrained("path/to/this/folder")
{made} = pipe("a prompt", num_inference_steps={grid.steps}, guidance_scale=1.0, {backbone.stock_call()}).{backbone.output}[0]
```
"""
