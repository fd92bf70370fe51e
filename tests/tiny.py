"""Tiny random CogVideoX pipelines made of the real diffusers and transformers classes."""

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = ("a", "red", "blue", "circle", "square", "moves", "left", "right")
VARIANTS = {
    "sincos": {},
    "rotary": {"use_rotary_positional_embeddings": True},
    "temporal": {
        "use_rotary_positional_embeddings": True,
        "patch_size_t": 2,
        "patch_bias": False,
        "ofs_embed_dim": None,
    },
}


def cogvideox_scheduler(**changes) -> CogVideoXDDIMScheduler:
    """Return the scheduler of CogVideoX-2B: v-prediction, zero terminal SNR, SNR shift 3,
    trailing.
    """
    return CogVideoXDDIMScheduler(
        **{
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 3.0,
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
        }
        | changes
    )


def tiny_tokenizer():
    """Return a word-level tokenizer that ends each prompt with </s>, like T5's."""

    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_pipeline(variant: str):
    """Return a random CogVideoX with a few thousand weights. 9 frames of 32 x 32 give latents with
    8 channels of 4 x 4.
    """
    return CogVideoXPipeline(*tiny_parts(VARIANTS[variant]))


def tiny_parts(network: dict, vae: dict | None = None) -> tuple:
    """Return the parts of a tiny pipeline, in the order of the pipeline's arguments. `network` and
    `vae` are changes of their configs.
    """
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 8,
            "out_channels": 8,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 4,
            "sample_frames": 9,
            "patch_size": 2,
            "max_text_seq_length": 12,
        }
        | network
    )
    with (
        torch.no_grad()
    ):  # with the default initialization, the modulated blocks hardly depend on time and text
        for parameter in transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    autoencoder = AutoencoderKLCogVideoX(
        **{
            "block_out_channels": (8, 8, 8, 8),
            "latent_channels": 8,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "down_block_types": ("CogVideoXDownBlock3D",) * 4,
            "up_block_types": ("CogVideoXUpBlock3D",) * 4,
            "temporal_compression_ratio": 4,
            "scaling_factor": 0.7,
            "sample_height": 32,
            "sample_width": 32,
        }
        | (vae or {})
    )
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(WORDS) + 3, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return (
        tiny_tokenizer(),
        encoder.eval(),
        autoencoder.eval(),
        transformer.eval(),
        cogvideox_scheduler(),
    )
