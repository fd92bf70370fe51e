"""Settings of an export: what to write and how to check it."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbones.base import Backbone
from ..backbones.experts import Experts
from ..data.files import short
from ..data.items import Item, pair_items
from .base_name import check_hub_base
from .consumers import check_formats, check_known

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class ExportRequest:
    """The files to write, and the samples to check them with."""

    formats: tuple[str, ...] = ("diffusers",)
    """Files of a LoRA. diffusers' file is always written; the others are names of consumers."""
    dtype: str = ""
    """Dtype of the files. Empty means float32 for a LoRA and the base's dtype for a network."""
    fuse: bool = False
    """Whether to write base and LoRA as one network."""
    rank: int = 0
    """Rank of the LoRA to extract from a full fine-tune; 0 writes the network itself."""
    prompts: tuple[str, ...] = ()
    """Prompts of the check and of the sample videos. Empty uses the run's."""
    images: tuple[str, ...] = ()
    """First frames for an image-to-video model: one per prompt, or one for all."""
    seed: int = 1234
    """Seed of the samples' noise."""
    tolerance: float = 0.0
    """Allowed relative difference in the check. 0 uses the default for the dtypes."""
    hub_base: str = ""
    """Hub id of a base that lies in a local folder; card and export.json name it instead."""

    def __post_init__(self):
        if self.hub_base:
            check_hub_base(self.hub_base)
        check_known(self.formats)
        plain = not self.rank and self.formats == ("diffusers",)
        rules = (
            (
                not 0 <= self.tolerance < 1,
                f"tolerance={self.tolerance:g}: use a relative difference below 1, or 0 for the"
                " default of the dtypes",
            ),
            (
                self.dtype not in ("", *DTYPES),
                f"dtype={self.dtype!r}: choose float32, float16 or bfloat16",
            ),
            (
                self.fuse and not plain,
                "fuse writes a whole network: omit rank and formats",
            ),
        )
        for broken, message in rules:
            if broken:
                raise ValueError(message)


def items_of(request: ExportRequest, backbone: Backbone) -> list[Item]:
    """Return the prompts, and images if any, of a request's samples; empty if it has none.

    Raises:
        ValueError: The images do not suit the prompts or the model.
    """
    if not request.prompts and not request.images:
        return []
    if not request.prompts:
        raise ValueError(
            f"image={short(str(request.images[0]))} has no prompt: add one (--prompt), or omit the"
            " image to sample items of the run"
        )
    return pair_items(
        request.prompts, request.images, takes_images=backbone.takes_images, setting="image"
    )


def check_request(
    request: ExportRequest, backbone: Backbone, *, adapted: bool, conditioned_on_steps: bool = False
) -> None:
    """Check that a request can be met for a student.

    Args:
        request: What to write.
        backbone: The student's base.
        adapted: Whether the student is a LoRA, or becomes one.
        conditioned_on_steps: Whether K is a condition of its network.

    Raises:
        ValueError: A setting of the request does not suit the student.
    """
    if not adapted and request.formats != ("diffusers",):
        raise ValueError(
            f"format {','.join(request.formats)}: LoRA formats do not apply to a whole network; set"
            " a rank to extract a LoRA"
        )
    if not adapted and request.fuse:
        raise ValueError(
            "fuse has no effect on this student, which is a whole network without a LoRA: omit it"
        )
    if isinstance(backbone.network, Experts) and request.fuse:
        raise ValueError(
            "fuse: a student with two experts cannot be one network: export its two LoRAs instead"
        )
    if request.fuse and conditioned_on_steps:
        raise ValueError(
            "fuse: this student is conditioned on its number of steps, which a plain network does"
            " not support: export its LoRA for each number of steps"
        )
    check_formats(request.formats, backbone)
