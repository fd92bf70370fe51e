"""Parts that the pages of scores share: images with many samples, and templates."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from ..data.files import write_text

CELL, COLUMNS = 96, 8
"""Width of a sample in pixels, and samples per row."""


def picture_sheet(videos: Sequence[Tensor]) -> str:
    """Arrange the middle frames of videos in rows.

    Args:
        videos: Videos [3, F, H, W] in [-1, 1], F >= 1.

    Returns:
        Data URI of a PNG image.
    """
    height, width = videos[0].shape[-2:]
    cell = (CELL, max(1, round(CELL * height / width)))
    rows = -(-len(videos) // COLUMNS)
    sheet = Image.new("RGB", (cell[0] * min(COLUMNS, len(videos)), cell[1] * rows))
    for index, video in enumerate(videos):
        frame = video[:, video.shape[1] // 2].clamp(-1, 1).add(1).mul(127.5).round().byte()
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(cell)
        sheet.paste(picture, (index % COLUMNS * cell[0], index // COLUMNS * cell[1]))
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def render(template: str, out: Path, **values: Any) -> None:
    """Write a page from a template of this package.

    Args:
        template: Name of the template.
        out: File to write.
        values: Values of all names in the template.

    Raises:
        jinja2.UndefinedError: A value is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(out, environment.get_template(template).render(**values))
