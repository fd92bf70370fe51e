"""Z-Image: a transformer over image and text tokens, captions through a chat template."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny import WORDS, tiny_tokenizer
from transformers import Qwen3Config, Qwen3Model

from .sd3 import shifted_autoencoder
from .stable_diffusion import SIZE

PIPELINE = "ZImagePipeline"
VARIANTS = ("base",)
SIZE = SIZE
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %} a"


def build(variant):
    """Build a pipeline for 32 x 48 pixels: latents of 4 x 8 x 12, 4 x 6 image tokens."""
    network = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[600, 16, 16],
    ).eval()
    with torch.no_grad():  # so that text and time have an effect
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(WORDS) + 3,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ).eval()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=6.0),
        shifted_autoencoder(),
        encoder,
        tokenizer,
        network,
    )


@torch.no_grad()
def encoded(pipeline, prompts):
    both = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=True)
    return tuple(_padded(captions) for captions in both)


def _padded(captions):
    embeds = torch.nn.utils.rnn.pad_sequence([*captions, captions[0].new_zeros(512, 16)], True)
    mask = torch.zeros(len(captions), 512, dtype=torch.bool)
    for row, caption in enumerate(captions):
        mask[row, : len(caption)] = True
    return {"prompt_embeds": embeds[:-1], "prompt_attention_mask": mask}
