"""CogVideoX: additive positions, rotary positions, temporal patches."""

from tiny import VARIANTS, tiny_pipeline

from tdmvid.config import ClipSize

PIPELINE = "CogVideoXPipeline"
VARIANTS = tuple(VARIANTS)
SIZE = ClipSize(frames=9, height=32, width=32)
build = tiny_pipeline


def encoded(pipeline, prompts):
    embeds, null = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=True, max_sequence_length=12
    )
    return {"prompt_embeds": embeds}, {"prompt_embeds": null}
