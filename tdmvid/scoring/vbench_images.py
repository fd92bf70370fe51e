"""The inputs of VBench-I2V: prompts with first frames, from its image suite or from a user's table.

The suite is the folder vbench2_beta_i2v of VBench's repository: vbench2_i2v_full_info.json lists
the prompts, and data/crop/RATIO has every image, cropped to one of four ratios of width to height.
The images are not part of the repository; its download_data.sh fetches them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from ..config import ClipSize, PromptConfig, VBenchConfig
from ..config.json_files import read_json
from ..data.items import file_digest, read_items
from ..data.video import read_frame, write_image

LIST = "vbench2_i2v_full_info.json"
CROPS = Path("data") / "crop"
RATIOS = {"1-1": 1 / 1, "8-5": 8 / 5, "7-4": 7 / 4, "16-9": 16 / 9}
"""Folders of the cropped images, and their ratios of width to height."""
SOURCE = (
    "https://github.com/Vchitect/VBench, folder vbench2_beta_i2v; its download_data.sh fetches the"
    " images"
)


def ratio_of(size: ClipSize) -> str:
    """Return the crop of the suite that is nearest to a video's ratio of width to height.

    Args:
        size: Size of the videos.

    Returns:
        Name of the crop's folder, e.g. "16-9".
    """
    own = math.log(size.width / size.height)
    return min(RATIOS, key=lambda name: abs(math.log(RATIOS[name]) - own))


def crops_of(config: VBenchConfig) -> Path:
    """Return the folder of the cropped images that an evaluation uses.

    Args:
        config: Settings of the evaluation.

    Returns:
        The folder, which may not exist.
    """
    return Path(config.images) / CROPS / ratio_of(config.video)


def lacks_list(config: VBenchConfig) -> str:
    """Describe why the list of the suite's prompts cannot be read.

    Args:
        config: Settings of the evaluation.

    Returns:
        A sentence; "" if the list exists or is not needed.
    """
    if config.suite != "i2v" or config.custom:
        return ""
    if (Path(config.images) / LIST).is_file():
        return ""
    return f"images={config.images!r} has no {LIST}: get VBench-I2V's image suite from {SOURCE}"


def suite_rows(config: VBenchConfig) -> list[dict]:
    """Read the list of the suite.

    Args:
        config: Settings of the evaluation.

    Returns:
        Rows in VBench's format, with the path of the image in "image". Prompts with a camera motion
        at their end have the image of the prompt without it, if the list does not name one.

    Raises:
        ValueError: The list does not exist, or a prompt has no image.
    """
    if lack := lacks_list(config):
        raise ValueError(lack)
    path, crops = Path(config.images) / LIST, crops_of(config)
    rows = read_json(path)
    named = {row["prompt_en"]: row["image_name"] for row in rows if row.get("image_name")}
    for row in rows:
        prompt = row["prompt_en"]
        name = named.get(prompt) or named.get(prompt.rpartition(", camera ")[0])
        if name is None:
            raise ValueError(f"{path}: prompt {prompt!r} has no image_name: get it from {SOURCE}")
        row["image"] = str(crops / name)
    return rows


def own_rows(config: VBenchConfig, names: list[str]) -> list[dict]:
    """Read a user's prompts and images.

    Args:
        config: Settings of the evaluation.
        names: Dimensions to score.

    Returns:
        Rows in VBench's format, with the path of the image in "image".

    Raises:
        ValueError: The file is invalid, or a prompt has two images.
    """
    items = read_items(PromptConfig(path=config.prompts), images=True)
    images: dict[str, str] = {}
    for item in items:
        image = str(item.image)
        if images.setdefault(item.prompt, image) != image:
            raise ValueError(
                f"prompts={config.prompts}: prompt {item.prompt!r} has two images,"
                f" {images[item.prompt]} and {image}, but VBench names videos by their prompt:"
                " remove one"
            )
    return [
        {"prompt_en": prompt, "dimension": names, "image": image}
        for prompt, image in images.items()
    ]


def write_pngs(images: Iterable[str], folder: Path) -> dict[str, str]:
    """Write images and the first frames of videos as PNG files, which VBench reads.

    They are upright and on white, as the model gets them, in their own size.

    Args:
        images: Image and video files.
        folder: Folder for the PNG files. Existing files are kept.

    Returns:
        PNG file of each image.

    Raises:
        ValueError: A file cannot be read.
    """
    written = {}
    for image in dict.fromkeys(images):
        png = folder / f"{file_digest(Path(image))[:24]}.png"
        if not png.is_file():
            write_image(png, read_frame(Path(image)))
        written[image] = str(png)
    return written
