"""What an export is asked to write."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbones.base import Backbone
from ..backbones.experts import Experts
from ..data.files import short
from ..data.items import Item, pair_items
from .consumers import check_formats

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ExportRequest:
    """The files to write, and the samples that they are checked on."""

    formats: tuple[str, ...] = ("diffusers",)
    """Files of a LoRA: diffusers' is always written; others are names of consumers."""
    dtype: str = ""
    """Of the files; empty is float32 for a LoRA and the base's for a network."""
    fuse: bool = False
    """Write base and LoRA as one network."""
    rank: int = 0
    """Extract a LoRA of this rank from a full fine-tune; 0 writes the network itself."""
    prompts: tuple[str, ...] = ()
    """Of the check and the sample videos; empty takes the run's."""
    images: tuple[str, ...] = ()
    """First frames of `prompts` for an image-to-video model: one for each, or one for all."""
    seed: int = 1234
    """Of the noise of those samples."""
    tolerance: float = 0.0
    """Of the check's relative difference; 0 is that of the dtypes."""

    def __post_init__(self):
        plain = not self.rank and self.formats == ("diffusers",)
        rules = (
            (
                not 0 <= self.tolerance < 1,
                f"tolerance={self.tolerance:g}: a relative difference below 1, or 0 for that of the"
                " dtypes",
            ),
            (
                self.dtype not in ("", *DTYPES),
                f"dtype={self.dtype!r}: choose float32, float16 or bfloat16",
            ),
            (
                self.fuse and not plain,
                "fuse writes a whole network: leave out rank and formats",
            ),
        )
        for broken, message in rules:
            if broken:
                raise ValueError(message)


def items_of(request: ExportRequest, backbone: Backbone) -> list[Item]:
    """Return what the samples of a request are of; none if it names no prompts.

    Raises:
        ValueError: its images do not suit the prompts or the model.
    """
    if not request.prompts and not request.images:
        return []
    if not request.prompts:
        raise ValueError(
            f"image={short(str(request.images[0]))} has no prompt: give one (--prompt), or leave it"
            " out to sample items of the run"
        )
    return pair_items(
        request.prompts, request.images, takes_images=backbone.takes_images, setting="image"
    )


def check_request(
    request: ExportRequest, backbone: Backbone, *, adapted: bool, conditioned_on_steps: bool = False
) -> None:
    """Check that the request can be met for a student.

    Args:
        request: what to write.
        backbone: the student's base.
        adapted: whether it is a LoRA, or becomes one.
        conditioned_on_steps: whether K is a condition of its network.

    Raises:
        ValueError: a setting of the request does not suit the student.
    """
    if not adapted and request.formats != ("diffusers",):
        raise ValueError(
            f"format {','.join(request.formats)}: a whole network has no LoRA formats, give a rank"
            " to extract a LoRA"
        )
    if isinstance(backbone.network, Experts) and (not adapted or request.fuse):
        raise ValueError(
            "fuse: a student of two experts is no one network: export its two LoRAs instead"
        )
    if request.fuse and conditioned_on_steps:
        raise ValueError(
            "fuse: this student is told its number of steps, which a plain network has no place"
            " for: export its LoRA of each K"
        )
    check_formats(request.formats, backbone)
