"""Masks of HunyuanVideo's autoencoder that are built at once equal diffusers' own."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from families import hunyuan_video

from tdmvid.backbones.hunyuan_autoencoder import CausalAttention
from tdmvid.backbones.hunyuan_video import HunyuanVideo


@pytest.mark.parametrize("frames, tokens, batch", [(1, 4, None), (3, 5, 2), (4, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_is_diffusers_own(frames, tokens, batch, dtype):
    found, expected = (
        kind.prepare_causal_attention_mask(frames, tokens, dtype, "cpu", batch_size=batch)
        for kind in (CausalAttention, HunyuanVideo15AttnBlock)
    )
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_every_attention_layer_is_replaced_and_keeps_its_weights():
    vae = hunyuan_video.build("base").vae
    before, video = dict(vae.state_dict()), torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        expected = vae.decode(vae.encode(video).latent_dist.mode()).sample
        HunyuanVideo.spec.fuse_vae(vae)
        found = vae.decode(vae.encode(video).latent_dist.mode()).sample
    kinds = {type(part) for part in vae.modules() if isinstance(part, HunyuanVideo15AttnBlock)}
    assert kinds == {CausalAttention}
    assert before.keys() == vae.state_dict().keys() and torch.equal(found, expected)
