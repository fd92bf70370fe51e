"""Write a picture of the image-to-video teacher and its student from the same frames and noise.

    python -m examples.shapes.show_image_student --run runs/shapes_i2v_4nfe --out frames.png

Rows are in twos, the teacher in 50 steps with guidance above the student. On the left is the given
frame, then the frames of the sample.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from tdmvid.adapters.teacher import load_teacher
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import ModelConfig
from tdmvid.data.video import write_image
from tdmvid.sampling.student import use_student
from tdmvid.shapes import evaluate, world

CAPTIONS = (
    "a red ring moving left",
    "a cyan cross moving down",
    "a yellow square moving up and a blue triangle moving right",
)
GAP, ENLARGED = 4, 1.5
"""Pixels between two frames, and the scale of the picture."""


@torch.no_grad()
def sample(run: Path, *, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Sample teacher and student from new first frames.

    Args:
        run: Folder of a run of `model.path: "shapes_i2v"`.
        seed: Seed of the frames and of the noise.

    Returns:
        The given frames [B, 3, H, W] in [-1, 1], and the videos [B, 3, F, H, W] of teacher and
        student.
    """
    backbone = load_teacher(ModelConfig(path="shapes_i2v"), evaluate.SIZE)
    generator = torch.Generator().manual_seed(seed)
    given = world.draw_videos([world.parse(c) for c in CAPTIONS], generator)[:, :, 0]
    cond = backbone.encode_prompts(list(CAPTIONS)).replaced_by(backbone.encode_images(given))
    null = backbone.encode_prompts([""])
    noise = torch.randn(len(CAPTIONS), *backbone.latent_shape(), generator=generator)
    videos = []
    for student, steps, cfg in ((None, 50, 2.0), (run / "lora", 4, 1.0)):
        pipeline = use_student(backbone, student, steps=steps)
        latents = backbone.stock.latents(
            pipeline, noise, cond, steps=steps, cfg=cfg, null=null, guidance={}
        )
        videos.append(backbone.decode(latents))
    return given, videos


def picture(given: Tensor, videos: list[Tensor]) -> Tensor:
    """Arrange given frames and videos in rows.

    Args:
        given: Given frames, [B, 3, H, W].
        videos: Videos of each sampler, [B, 3, F, H, W].

    Returns:
        The picture, [3, H, W] in [-1, 1].
    """
    rows = []
    for number, frame in enumerate(given):
        for video in videos:
            cells = [pad(frame, (0, 2 * GAP), value=1), *video[number].unbind(1)]
            rows.append(torch.cat([pad(cell, (0, GAP, 0, GAP), value=1) for cell in cells], -1))
        rows[-1] = pad(rows[-1], (0, 0, 0, 2 * GAP), value=1)
    return torch.cat(rows, -2)[:, : -3 * GAP, :-GAP]


def main() -> None:
    """Write the picture."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, required=True, help="file for the picture")
    parser.add_argument("--seed", type=int, default=5, help="seed of the frames and of the noise")
    args = parser.parse_args()
    whole = picture(*sample(args.run, seed=args.seed))
    large = torch.nn.functional.interpolate(whole[None], scale_factor=ENLARGED)[0]
    write_image(args.out, large)
    print(f"picture: {args.out}")


if __name__ == "__main__":
    run_program(main)
