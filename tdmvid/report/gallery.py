"""The gallery of a run: teacher and student side by side, and their clean predictions on the way.

Shapes: B samples, one a prompt; videos are [B, 3, F, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backbones.autoencode import decode_shown
from ..backbones.base import Backbone
from ..data.files import write_json
from ..data.items import Item, read_images
from ..data.video import few_frames, write_clips, write_image, write_strip
from ..diffusion.grid import TimeGrid

FIRST_FRAME = "first frame"
"""Name of the column of given images."""


@dataclass(frozen=True)
class Column:
    """What one sampler made of the noise that all columns share."""

    name: str
    nfe: int
    """Network calls of one sample; a guided one counts twice."""
    latents: Tensor
    """[B, ...]."""
    grid: TimeGrid
    path: dict[int, Tensor]
    """Step k -> the clean prediction of the first sample there, [1, ...], in the order shown."""


def write_gallery(
    folder: Path,
    teachers: Sequence[Column],
    student: Column,
    *,
    backbone: Backbone,
    items: Sequence[Item],
) -> None:
    """Write videos, a comparison strip, trajectories, and the JSON files that the report reads.

    Args:
        folder: the gallery's own.
        teachers: columns to the left of the student's.
        student: the last column; its trajectory comes first.
        backbone: decodes the latents.
        items: one a sample; the first frames that were given become the first column.
    """
    prompts, given = [item.prompt for item in items], _write_given(folder, items, backbone)
    columns, decoded = [], []
    for index, column in enumerate((*teachers, student)):
        videos = decode_shown(backbone, column.latents, f"decoding {column.name}")
        decoded.append(few_frames(videos))
        names = write_clips(folder / str(index), videos, backbone.size.fps)
        columns.append({"name": column.name, "nfe": column.nfe, "videos": names})
    prompt_by_prompt = torch.stack(decoded, 1).flatten(0, 1)
    write_strip(folder / "comparison.png", prompt_by_prompt, group=len(decoded))
    rows = [
        _write_trajectory(folder, index, column, backbone)
        for index, column in enumerate((student, *teachers))
    ]
    write_json(folder / "gallery.json", {"prompts": prompts, "columns": [*given, *columns]})
    write_json(folder / "trajectories.json", {"prompt": prompts[0], "rows": rows})


def _write_given(folder: Path, items: Sequence[Item], backbone: Backbone) -> list[dict]:
    """Write given first frames as the model got them; return their column, if there are any."""
    files = [item.image for item in items if item.image is not None]
    if not files:
        return []
    names = write_clips(folder / "given", read_images(files, backbone.size)[:, :, None], 1)
    return [{"name": FIRST_FRAME, "nfe": None, "videos": names}]


def _write_trajectory(folder: Path, index: int, column: Column, backbone: Backbone) -> dict:
    """Write the middle frame of each clean prediction; return the row for trajectories.json."""
    labels, images = [], []
    for number, (k, x0) in enumerate(column.path.items()):
        time = backbone.process.timestep(torch.tensor([column.grid.times[k]])).item()
        labels.append(f"t = {time:g}")
        images.append(f"path/{index}_{number}.png")
        video = backbone.decode(x0)[0]
        write_image(folder / images[-1], video[:, video.shape[1] // 2])
    return {"name": column.name, "labels": labels, "images": images}
