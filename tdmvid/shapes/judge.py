"""The judge: a small fixed network that recognizes what a video of the shapes world shows.

For each of the six colours it predicts whether an object of that colour is present, its shape and
its direction. It also regresses position, radius, speed and background shade, so that its features
include what captions leave open. It is trained on ground truth and on the autoencoder's
reconstructions of it (which have rounded corners), never on samples, and is the same for teacher
and student.

Shapes: B videos [B, 3, F, H, W] in [-1, 1]; 6 colours; 14 features.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file
from torch import Tensor, nn

from . import world

WEIGHTS = Path(__file__).with_name("judge.safetensors")
OBJECT_FEATURES, BACKGROUND_FEATURES = 10, 4
MASK_WIDTH = 0.36
"""Colour distance, in units of [-1, 1], up to which a pixel still matches a colour."""
COLOURS, _SHAPES, _DIRECTIONS = len(world.COLOURS), len(world.SHAPES), len(world.DIRECTIONS)
_FIELDS = {
    "present": 1,
    "shape": _SHAPES,
    "direction": _DIRECTIONS,
    "position": 2,
    "radius": 1,
    "speed": 1,
}


class Judge(nn.Module):
    """Network with 0.3M parameters that maps per-colour masks to 10 features per colour, plus 4
    features of the background.

    The network is shared between colours, so it learns every shape from objects of every colour.
    The 14 features of a video are the sum of those of its objects, and those of its background;
    they are few enough that a few hundred videos suffice to estimate their distribution.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for a, b, kernel, stride in ((world.FRAMES, 48, 6, 4), (48, 96, 3, 2), (96, 96, 3, 2)):
            layers += [nn.Conv2d(a, b, kernel, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU()]
        self.trunk = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(96 * 4 * 4, 128),
            nn.SiLU(),
            nn.Linear(128, OBJECT_FEATURES),
            nn.BatchNorm1d(
                OBJECT_FEATURES, affine=False
            ),  # unit variance gives Fréchet distances a fixed scale
        )
        self.backdrop = nn.Sequential(
            nn.Linear(3 * 8 * 8, 64),
            nn.SiLU(),
            nn.Linear(64, BACKGROUND_FEATURES),
            nn.BatchNorm1d(BACKGROUND_FEATURES, affine=False),
        )
        self.object_head = nn.Linear(OBJECT_FEATURES, sum(_FIELDS.values()))
        self.shade_head = nn.Linear(BACKGROUND_FEATURES, 1)
        self.palette: Tensor
        self.register_buffer(
            "palette", torch.tensor(list(world.COLOURS.values())) * 2 - 1, persistent=False
        )

    def forward(self, videos: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute features and predictions.

        Args:
            videos: Videos [B, 3, F, H, W] in [-1, 1].

        Returns:
            Features [B, 14], and predictions by name: [B, 6, ...] each, and "shade" [B].
        """
        near = torch.einsum("kc,bcfhw->bkfhw", self.palette, videos)
        square = self.palette.square().sum(1).view(1, -1, 1, 1, 1) + videos.square().sum(
            1, keepdim=True
        )
        masks = torch.exp((near - square / 2) / MASK_WIDTH**2)  # [B, 6, F, H, W]
        objects = self.trunk(masks.flatten(0, 1))
        scenery = self.backdrop(nnf.adaptive_avg_pool2d(videos.mean(2), 8).flatten(1))
        parts = (
            self.object_head(objects)
            .view(len(videos), COLOURS, -1)
            .split(tuple(_FIELDS.values()), -1)
        )
        heads = dict(zip(_FIELDS, parts, strict=True))
        heads["present"] = heads["present"][..., 0]
        together = (
            objects.view(len(videos), COLOURS, -1).sum(1) / 2
        )  # sum over at most two objects, about unit variance
        hidden = torch.cat([together, scenery], 1)
        return hidden, heads | {"shade": self.shade_head(scenery)[:, 0]}


def load_judge(path: Path = WEIGHTS, device: str = "cpu") -> Judge:
    """Load the trained judge in float32, in evaluation mode and without gradients.

    Args:
        path: File of its weights.
        device: Device to load it to.

    Returns:
        The judge.
    """
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.float().to(device).eval().requires_grad_(False)


@torch.no_grad()
def _apply(judge: Judge, videos: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    judge.eval()
    device = next(judge.parameters()).device
    parts = [judge(x.to(device, torch.float32)) for x in videos.split(64)]
    heads = {name: torch.cat([p[1][name] for p in parts]).cpu() for name in parts[0][1]}
    return torch.cat([p[0] for p in parts]).cpu(), heads


def features(judge: Judge, videos: Tensor) -> Tensor:
    """Compute the judge's features of videos.

    Args:
        judge: The judge.
        videos: Videos [B, 3, F, H, W] in [-1, 1].

    Returns:
        Features [B, 14] on the CPU, of about unit variance over ground truth.
    """
    return _apply(judge, videos)[0]


def attributes(
    judge: Judge, videos: Tensor, things: list[tuple[world.Thing, ...]]
) -> dict[str, Tensor]:
    """Check whether each video shows what its caption names.

    Args:
        judge: The judge.
        videos: Videos [B, 3, F, H, W] in [-1, 1].
        things: Objects that each caption names.

    Returns:
        Bool [B] for each of "colour" (exactly the named colours are present), "shape" and
        "direction" (every named object is present, and the judge gives its shape or direction a
        probability above 0.5), and "all" (all three).
    """
    heads = _apply(judge, videos)[1]
    there = heads["present"] > 0
    named = torch.zeros_like(there)
    right = {"shape": torch.ones_like(there), "direction": torch.ones_like(there)}
    likely = {name: heads[name].softmax(-1) > 0.5 for name in right}
    index = [
        (row, o.colour, o.shape, o.direction) for row, objects in enumerate(things) for o in objects
    ]
    row, colour, shape, direction = torch.tensor(index).T
    named[row, colour] = True
    right["shape"][row, colour] = there[row, colour] & likely["shape"][row, colour, shape]
    right["direction"][row, colour] = (
        there[row, colour] & likely["direction"][row, colour, direction]
    )
    out = {"colour": (there == named).all(1)} | {name: ok.all(1) for name, ok in right.items()}
    return out | {"all": out["colour"] & out["shape"] & out["direction"]}


def accuracy(judge: Judge, *, count: int, seed: int = 99) -> float:
    """Measure the share of held-out ground-truth videos that the judge gets completely right.

    Args:
        judge: The judge.
        count: Number of videos.
        seed: Seed of captions and videos.

    Returns:
        Share in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    things = world.draw_captions(count, generator, test=True)
    return (
        attributes(judge, world.draw_videos(things, generator), things)["all"].float().mean().item()
    )
