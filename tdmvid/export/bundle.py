"""The files that users take away: a LoRA with its alpha, its scheduler, and a card; checked by
loading it.

What is written is reloaded into a STOCK diffusers pipeline and sampled from the student's
own noise; above tolerance nothing is left behind (see diffusers' loaders/lora_pipeline.py).
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..adapters.bundle import FACTS, read_facts
from ..adapters.layouts import KeyLayout, adapted_modules
from ..adapters.lora import ADAPTER, host_copy, in_host_memory, merge
from ..adapters.step_condition import NAME, baked
from ..backbones.dtype import torch_dtype
from ..config import LoraSettings
from ..data.files import usual_mode, write_json
from ..data.video import write_image, write_video
from ..diffusion.denoiser import Cond
from ..diffusion.grid import TimeGrid
from .card import Story, write_card
from .consumers import check_formats, consumers

if TYPE_CHECKING:
    from ..backbones.base import Backbone

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""Root mean square difference of latents between student and reloaded export, relative to theirs,
by the dtype of base or whole network.
"""
GPU_TOLERANCE = 1e-4
"""In float32 on a GPU, whose convolutions round to TF32 unless told otherwise."""
LORA_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}
"""What the rounding of a LoRA file alone may change, by its dtype."""


def export_lora(
    folder: Path,
    *,
    backbone: Backbone,
    module: nn.Module,
    weights: dict[str, Tensor],
    grid: TimeGrid,
    settings: LoraSettings,
    expected: Tensor,
    z: Tensor,
    cond: Cond,
    formats: tuple[str, ...] = ("diffusers",),
    dtype: str = "float32",
    story: Story = Story(),
    extra: dict | None = None,
    tolerance: float = 0.0,
) -> dict:
    """Write the LoRA bundle to `folder` and return the check's figures.

    weights: adapter tensors by parameter name; expected: [B, ...] the student's final latents
    from noise z under cond. formats: others beside diffusers', which is always written; dtype:
    of the files. RuntimeError if a reloaded file differs by more than `tolerance`, 0 for that of
    the dtypes.
    """
    check_formats(formats, backbone)
    with replacing(folder) as written:
        aside = written / Path(folder).resolve().name
        aside.mkdir()
        layers = get_peft_model_state_dict(module, state_dict=weights, adapter_name=ADAPTER)
        layers, config = baked(layers, module.peft_config[ADAPTER], module, weights, grid.steps)
        layers = {
            key: tensor.to(getattr(torch, dtype)).contiguous().cpu()
            for key, tensor in layers.items()
        }
        backbone.lora.save(aside, layers, config)
        backbone.student_scheduler(grid).save_pretrained(aside)
        check = _Check(
            backbone,
            grid,
            dtype,
            tolerance or usual_tolerance(backbone, grid, z, LORA_TOLERANCE[dtype]),
            expected,
            z,
            cond,
        )
        facts = (
            check.facts(check.lora(aside))
            | {"rank": settings.rank, "alpha": settings.alpha}
            | (extra or {})
        )
        facts["formats"], facts["errors"] = {}, {}
        extras = {}
        for name in formats:
            if name != "diffusers":
                consumer = consumers()[name]
                stem = story.config.get("name") or Path(folder).resolve().name
                path = f"{name}/{stem}_{grid.steps}steps.safetensors"
                facts["formats"][name] = path
                _write_format(aside / path, backbone, layers, settings.alpha, consumer.layout)
                facts["errors"][name] = check.format(
                    aside, aside / path, backbone, layers, consumer.layout
                )
                prompt = (*story.prompts, "a prompt")[0]
                extras |= consumer.write_extras(aside / path, backbone, grid, prompt)
        facts |= extras
        _finish(aside, backbone, facts, story, expected)
    return facts


@torch.no_grad()
def export_network(
    folder: Path,
    *,
    backbone: Backbone,
    weights: dict[str, Tensor],
    grid: TimeGrid,
    expected: Tensor,
    z: Tensor,
    cond: Cond,
    dtype: str | None = None,
    story: Story = Story(),
    tolerance: float = 0.0,
) -> float:
    """Write a student of whole-network training as a diffusers model folder with its scheduler; the
    check's relative difference.

    weights: all parameters by name; expected, z, cond and RuntimeError as in `export_lora`.
    """
    network = backbone.fresh_network().cpu().float()  # the backbone's own may be sharded
    network.load_state_dict(weights, strict=False)
    return _export_whole(
        folder,
        backbone,
        network,
        grid,
        dtype or backbone.config.dtype,
        story,
        (expected, z, cond),
        tolerance,
    )


@torch.no_grad()
def export_fused(
    folder: Path,
    *,
    backbone: Backbone,
    module: nn.Module,
    weights: dict[str, Tensor],
    grid: TimeGrid,
    expected: Tensor,
    z: Tensor,
    cond: Cond,
    dtype: str | None = None,
    story: Story = Story(),
    tolerance: float = 0.0,
) -> float:
    """Write base and LoRA in one diffusers model folder with its scheduler; arguments as in
    `export_lora`, merged in float32.
    """
    if any(key.startswith(f"{NAME}.") for key in weights):
        raise ValueError(
            "fuse: this student is told its number of steps, which a plain network has no place"
            " for: export its LoRA of each K"
        )
    network = host_copy(module).float()
    network.load_state_dict(weights, strict=False)
    with in_host_memory([module]):
        return _export_whole(
            folder,
            backbone,
            merge(network),
            grid,
            dtype or backbone.config.dtype,
            story,
            (expected, z, cond),
            tolerance,
        )


def _export_whole(
    folder: Path,
    backbone: Backbone,
    network: nn.Module,
    grid: TimeGrid,
    dtype: str,
    story: Story,
    samples: tuple[Tensor, Tensor, Cond],
    tolerance: float,
) -> float:
    check = _Check(
        backbone,
        grid,
        dtype,
        tolerance or usual_tolerance(backbone, grid, samples[1], TOLERANCE[dtype]),
        *samples,
    )
    _cast(network, backbone, getattr(torch, dtype))
    with replacing(folder) as written:
        aside = written / Path(folder).resolve().name
        network.save_pretrained(aside)
        backbone.student_scheduler(grid).save_pretrained(aside)
        error = check.network(aside)
        _finish(aside, backbone, check.facts(error), story, check.expected)
    return error


def _cast(network: nn.Module, backbone: Backbone, dtype: torch.dtype) -> None:
    """Give a float32 copy of the backbone's network `dtype` where that has its base's; what a
    family keeps in float32 stays.
    """
    like = {
        name.replace(".base_layer", ""): x.dtype
        for name, x in chain(backbone.network.named_parameters(), backbone.network.named_buffers())
    }
    for name, x in chain(network.named_parameters(), network.named_buffers()):
        x.data = x.data.to(dtype if like[name] == torch_dtype(backbone.config) else like[name])


class _Check:
    """What the student does, to compare an export with: its final latents from noise z under cond.

    dtype: of the export.
    """

    def __init__(
        self,
        backbone: Backbone,
        grid: TimeGrid,
        dtype: str,
        tolerance: float,
        expected: Tensor,
        z: Tensor,
        cond: Cond,
    ):
        self.backbone, self.grid, self.dtype, self.tolerance, self.expected, self.z, self.cond = (
            backbone,
            grid,
            dtype,
            tolerance,
            expected,
            z,
            cond,
        )

    def facts(self, error: float) -> dict:
        scheduler = self.backbone.student_scheduler(self.grid)
        module = (
            "diffusers"
            if hasattr(diffusers, type(scheduler).__name__)
            else type(scheduler).__module__
        )
        return {
            "error": error,
            "tolerance": self.tolerance,
            "samples": len(self.z),
            "steps": self.grid.steps,
            "timesteps": _timesteps(self.backbone, self.grid),
            "guidance": 1.0,
            "dtype": self.dtype,
            "pipeline": self.backbone.pipeline_class,
            "network": self.backbone.spec.network_folder,
            "scheduler": {"module": module, "name": type(scheduler).__name__},
            "model": asdict(self.backbone.config),
            "video": asdict(self.backbone.size),
        }

    def lora(self, folder: Path) -> float:
        return self._difference(stock_latents(folder, self.backbone, self.z, self.cond, self.grid))

    def format(
        self,
        bundle: Path,
        path: Path,
        backbone: Backbone,
        layers: dict[str, Tensor],
        layout: KeyLayout,
    ) -> float:
        """The file of another program, read back by its rules, in the stock pipeline."""
        state = layout.read(load_file(path), backbone.pipeline_class, adapted_modules(layers))
        with tempfile.TemporaryDirectory() as scratch:
            again = Path(scratch)
            shutil.copy(bundle / "scheduler_config.json", again)
            rank = next(
                len(tensor) for key, tensor in state.items() if key.endswith("lora_A.weight")
            )
            biased = any(key.endswith("lora_B.bias") for key in state)
            if biased:  # peft gives all layers a bias, or none
                state |= {
                    f"{n}.lora_B.bias": torch.zeros(len(state[f"{n}.lora_B.weight"]))
                    for n in adapted_modules(state)
                    if f"{n}.lora_B.bias" not in state
                }
            config = LoraConfig(
                r=rank, lora_alpha=rank, target_modules=adapted_modules(state), lora_bias=biased
            )
            backbone.lora.save(again, state, config)
            return self.lora(again)

    def network(self, folder: Path) -> float:
        backbone = self.backbone
        reloaded = (
            type(backbone.network)
            .from_pretrained(folder, dtype=torch_dtype(backbone.config))
            .to(self.z.device)
        )
        pipeline = backbone.stock.pipeline(reloaded)
        pipeline.scheduler = backbone.student_scheduler(self.grid)
        found = backbone.stock.latents(pipeline, self.z, self.cond, steps=self.grid.steps)
        del pipeline, reloaded
        gc.collect()  # as in stock_latents
        return self._difference(found)

    def _difference(self, found: Tensor) -> float:
        error = ((found - self.expected).norm() / self.expected.norm()).item()
        if not error <= self.tolerance:
            raise RuntimeError(
                f"the export, reloaded by stock diffusers, differs from the student by {error:.2e}"
                f" of its size (tolerance {self.tolerance:.0e}); checkpoints are kept: if that is"
                " the rounding of a deep network, launch/export_lora.py --tolerance allows it"
            )
        return error


def usual_tolerance(backbone: Backbone, grid: TimeGrid, z: Tensor, written: float) -> float:
    """By the dtype of the base, the device, and what rounding the export to its own may change."""
    return max(
        TOLERANCE[backbone.config.dtype], GPU_TOLERANCE if z.is_cuda else 0.0, written
    ) + _off(backbone, grid)


def _write_format(
    path: Path, backbone: Backbone, layers: dict[str, Tensor], alpha: float, layout: KeyLayout
) -> None:
    tensors = layout.write(layers, alpha, backbone.pipeline_class)
    path.parent.mkdir(exist_ok=True)
    rank = len(next(tensor for key, tensor in layers.items() if key.endswith("lora_A.weight")))
    save_file(
        tensors,
        path,
        metadata={"format": "pt", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)},
    )


def _finish(folder: Path, backbone: Backbone, facts: dict, story: Story, latents: Tensor) -> None:
    """Sample videos, facts and card."""
    samples = []
    if story.prompts:
        (folder / "samples").mkdir()
        for index, (video, _) in enumerate(zip(backbone.decode(latents).cpu(), story.prompts)):
            samples.append(f"samples/{index}.{'png' if video.shape[1] == 1 else 'mp4'}")
            if video.shape[1] == 1:
                write_image(folder / samples[-1], video[:, 0])
            else:
                write_video(folder / samples[-1], video, fps=backbone.size.fps)
    grid = story.config.get("grid", {})
    if grid.get("kind") == "shifted":
        facts["shift"] = grid["shift"]
    write_card(folder, backbone, facts, story, samples)
    facts["files"] = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    write_json(folder / FACTS, facts)


@torch.no_grad()
def stock_latents(
    folder: Path, backbone: Backbone, z: Tensor, cond: Cond, grid: TimeGrid
) -> Tensor:
    """The final latents of the stock pipeline with the LoRA and scheduler of `folder`: as `z`."""
    pipeline = backbone.stock.pipeline()
    backbone.lora.load(pipeline, folder)
    latents = backbone.stock.latents(pipeline, z, cond, steps=grid.steps)
    del pipeline
    # it is in a cycle, which would keep its base on the device beside the next one, and beside the
    # run's own
    gc.collect()
    return latents


@contextmanager
def replacing(*folders: Path) -> Iterator[Path]:
    """A folder to write exports in, by the names of `folders`: all take their places when the block
    ends without an error, else none does.

    ValueError if one of `folders` holds anything but an export: it is replaced whole.
    """
    folders = [Path(folder).resolve() for folder in folders]
    aside, old = (folders[0].with_name(f".{folders[0].name}.{state}") for state in ("part", "old"))
    _put_back(folders, aside, old)
    for folder in folders:
        _check_replaceable(folder)
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in filter(Path.is_file, aside.rglob("*")):
            usual_mode(path)
        old.mkdir()
        for folder in filter(Path.exists, folders):
            folder.rename(old / folder.name)
        for folder in folders:
            (aside / folder.name).rename(folder)
    except BaseException:
        _put_back(folders, aside, old)
        raise
    for left in (
        aside,
        old,
    ):  # in this order: without the first, the second is no more than rubbish
        shutil.rmtree(left, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """ValueError if the folder holds what no export wrote."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    if not (folder / FACTS).is_file():
        raise ValueError(
            f"{folder} exists and is no export (it has no {FACTS}): an export replaces the whole"
            " folder, give another --out"
        )
    written = {FACTS, *read_facts(folder).get("files", [])}
    foreign = sorted(
        name
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in written
    )
    if foreign:
        raise ValueError(
            f"{folder} holds {len(foreign)} files that no export wrote, {foreign[0]!r} among them,"
            " and an export replaces the whole folder: take them out, or give another --out"
        )


def _put_back(folders: list[Path], aside: Path, old: Path) -> None:
    """Undo a replacement that an error or a kill left halfway, and clean up."""
    for folder in folders if aside.exists() and old.exists() else ():
        if (
            not (aside / folder.name).exists() or (old / folder.name).exists()
        ):  # replaced, or about to be
            shutil.rmtree(folder, ignore_errors=True)
        if (old / folder.name).exists():
            (old / folder.name).rename(folder)
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)


def _off(backbone: Backbone, grid: TimeGrid) -> float:
    """By how many timesteps the stock scheduler rounds the grid, at most a thousandth: the network
    embeds them by sines, which move by no more than that.
    """
    scheduler = backbone.student_scheduler(grid)
    scheduler.set_timesteps(grid.steps)
    return min(
        1e-3, (scheduler.timesteps - torch.tensor(_timesteps(backbone, grid))).abs().max().item()
    )


def _timesteps(backbone: Backbone, grid: TimeGrid) -> list[float]:
    return backbone.process.timestep(torch.tensor(grid.descending())).tolist()
