"""Parts that the pages of scores share: images with many samples, and templates."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.files import write_text

CELL, COLUMNS = 96, 8
"""Width of a sample in pixels, and samples per row."""
SMALL, LABEL, GAP = 64, 18, 6
"""Width of a sample, height of a label and distance of cells in an overview, in pixels."""


def picture_sheet(videos: Sequence[Tensor]) -> str:
    """Arrange the middle frames of videos in rows.

    Args:
        videos: Videos [3, F, H, W] in [-1, 1], F >= 1.

    Returns:
        Data URI of a PNG image.
    """
    data = io.BytesIO()
    _sheet(videos, CELL, COLUMNS).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _sheet(videos: Sequence[Tensor], side: int, columns: int) -> Image.Image:
    """Return the middle frames of videos, `columns` in a row, each `side` pixels wide."""
    height, width = videos[0].shape[-2:]
    cell = (side, max(1, round(side * height / width)))
    rows = -(-len(videos) // columns)
    sheet = Image.new("RGB", (cell[0] * min(columns, len(videos)), cell[1] * rows))
    for index, video in enumerate(videos):
        frame = video[:, video.shape[1] // 2].clamp(-1, 1).add(1).mul(127.5).round().byte()
        picture = Image.fromarray(frame.permute(1, 2, 0).numpy()).resize(cell)
        sheet.paste(picture, (index % columns * cell[0], index // columns * cell[1]))
    return sheet


def write_overview(
    path: Path, rows: Sequence[Sequence[tuple[str, Sequence[Tensor]]]], *, columns: int
) -> None:
    """Write one image with the samples of all cells, for papers and READMEs.

    Args:
        path: JPEG file.
        rows: For each row its cells: a label and videos [3, F, H, W] in [-1, 1].
        columns: Samples in a row of a cell.
    """
    sheets = [[(label, _sheet(videos, SMALL, columns)) for label, videos in row] for row in rows]
    heights = [LABEL + max(sheet.height for _, sheet in row) + GAP for row in sheets]
    width = max(sum(sheet.width + GAP for _, sheet in row) for row in sheets)
    whole = Image.new("RGB", (width, sum(heights)), "white")
    draw, top = ImageDraw.Draw(whole), 0
    for row, height in zip(sheets, heights, strict=True):
        left = 0
        for label, sheet in row:
            draw.text((left, top + 2), label, fill="black", font_size=13)
            whole.paste(sheet, (left, top + LABEL))
            left += sheet.width + GAP
        top += height
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, "JPEG", quality=85)


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
