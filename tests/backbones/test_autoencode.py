"""The autoencoder takes small samples together, and large ones one at a time."""

from types import SimpleNamespace

import pytest
import torch

from tdmvid.backbones.autoencode import decode_parts, encode_parts
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.hunyuan_video import HunyuanVideo
from tdmvid.config import ClipSize


class Doubling:
    """An autoencoder that doubles its input, and keeps the number of samples of each call."""

    def __init__(self):
        self.calls = []

    def decode(self, latents):
        self.calls.append(len(latents))
        return SimpleNamespace(sample=2 * latents)

    def encode(self, samples):
        self.calls.append(len(samples))
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: 2 * samples))


@pytest.mark.parametrize("at_once, calls", [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_a_batch_is_split_into_parts_that_give_the_same_result(at_once, calls):
    x = torch.linspace(-0.6, 0.6, 10).view(5, 2)
    vae = Doubling()
    torch.testing.assert_close(encode_parts(vae, x, at_once), 2 * x)
    torch.testing.assert_close(decode_parts(vae, x, at_once), (2 * x).clamp(-1, 1))
    assert vae.calls == 2 * calls


@pytest.mark.parametrize(
    "size, number",
    [
        (ClipSize(1, 512, 512), 1),
        (ClipSize(1, 1024, 1024), 1),
        (ClipSize(49, 480, 720), 1),
        (ClipSize(9, 64, 64), 7),
        (ClipSize(1, 128, 128), 16),
    ],
    ids=str,
)
def test_samples_of_the_usual_sizes_are_taken_one_at_a_time(size, number):
    assert Backbone.samples_at_once(size, tiling=False) == number
    assert Backbone.samples_at_once(size, tiling=True) == 1
    assert HunyuanVideo.samples_at_once(size, tiling=False) == 1
