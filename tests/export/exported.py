"""Prompts, size and sampling that the export tests share."""

import torch

from tdmvid.config import ClipSize
from tdmvid.sampling.shots import noise
from tdmvid.sampling.student import use_student

PROMPTS = ("a red circle", "a blue square moves left")
SIZE = ClipSize(9, 32, 32)


def latents(base, folder, steps=4):
    """Sample as a user does: stock pipeline, exported folder, noise and prompts."""
    z = torch.stack([noise(prompt, 7, base.latent_shape()) for prompt in PROMPTS])
    return base.stock.latents(
        use_student(base, folder), z, base.encode_prompts(list(PROMPTS)), steps=steps
    )
