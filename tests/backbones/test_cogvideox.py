"""Our CogVideoX against the stock pipeline of diffusers, on tiny random models of the three layouts."""

import pytest
import torch
from diffusers import CogVideoXPipeline

from tdmvid.backbones.base import ClipSize, ModelConfig, check_attention, load_backbone
from tdmvid.backbones.cogvideox_parallel import JointAttention
from tdmvid.diffusion.denoiser import Guided
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import ddim

FRAMES = {"sincos": 9, "rotary": 9, "temporal": 9}  # 3 latent frames, padded to 4 by temporal patches
PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture(params=FRAMES)
def variant(request):
    return request.param


@pytest.fixture
def load(tiny_cogvideox):
    """Loads a backbone of 32 x 32 pixels."""

    def load(variant, frames=None, height=32, width=32):
        size = ClipSize(frames=frames or FRAMES[variant], height=height, width=width)
        return load_backbone(ModelConfig(path=str(tiny_cogvideox(variant))), size)

    return load


@pytest.fixture
def stock(tiny_cogvideox):
    """Loads the stock pipeline."""

    def stock(variant):
        pipeline = CogVideoXPipeline.from_pretrained(tiny_cogvideox(variant))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return stock


def noise(backbone, batch=2):
    return torch.randn(batch, *backbone.latent_shape(), generator=torch.Generator().manual_seed(3))


def test_the_latent_shape_is_the_pipeline_s(load):
    assert load("sincos").latent_shape() == (3, 8, 4, 4)
    assert load("temporal").latent_shape() == (4, 8, 4, 4)
    assert load("rotary", frames=17, height=48, width=64).latent_shape() == (5, 8, 6, 8)


def test_prompts_are_encoded_as_by_the_pipeline(load, stock, variant):
    backbone, pipeline = load(variant), stock(variant)
    prompts = [*PROMPTS, "", "a " * 40]  # the last one is longer than the model's text
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=12)
    cond = backbone.encode_prompts(prompts)
    assert list(cond) == ["prompt_embeds"]
    torch.testing.assert_close(cond["prompt_embeds"], expected, atol=1e-6, rtol=0)


def test_x0_is_the_scheduler_s_original_sample_at_every_step(load, stock, variant):
    backbone, pipeline = load(variant), stock(variant)
    cond, x = backbone.encode_prompts(PROMPTS), noise(backbone)
    pipeline.scheduler.set_timesteps(4)
    for timestep, time in zip(pipeline.scheduler.timesteps, uniform(4, backbone.process).descending()):
        rotary = None
        if variant != "sincos":
            rotary = pipeline._prepare_rotary_positional_embeddings(32, 32, x.shape[1], torch.device("cpu"))
        with torch.no_grad():
            out = pipeline.transformer(x, cond["prompt_embeds"], timestep.expand(2), image_rotary_emb=rotary).sample
            ours = backbone.predict_x0(backbone.network, x, torch.full((2,), time), cond)
        expected = pipeline.scheduler.step(out, timestep, x).pred_original_sample
        torch.testing.assert_close(ours, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_four_steps_give_the_stock_pipeline_s_latents(load, stock, variant, cfg):
    backbone, pipeline = load(variant), stock(variant)
    z = noise(backbone)
    # Latents given to the pipeline are not padded for temporal patches; ask it for the padded length.
    frames = (z.shape[1] - 1) * 4 + 1
    expected = pipeline(
        PROMPTS, height=32, width=32, num_frames=frames, num_inference_steps=4, guidance_scale=cfg,
        latents=z, output_type="latent", max_sequence_length=12,
    ).frames
    denoiser = Guided(backbone.denoiser(backbone.network), backbone.encode_prompts([""]), cfg)
    ours = ddim(denoiser, z, backbone.encode_prompts(PROMPTS), uniform(4, backbone.process))
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("variant, height, width", [("rotary", 48, 64), ("sincos", 48, 64), ("temporal", 16, 32)])
def test_another_size_than_the_model_s_gives_the_stock_latents(load, stock, variant, height, width):
    backbone, pipeline = load(variant, height=height, width=width), stock(variant)
    z = noise(backbone)
    expected = pipeline(
        PROMPTS, height=height, width=width, num_frames=(z.shape[1] - 1) * 4 + 1, num_inference_steps=2,
        guidance_scale=1.0, latents=z, output_type="latent", max_sequence_length=12,
    ).frames
    denoiser = backbone.denoiser(backbone.network)
    ours = ddim(denoiser, z, backbone.encode_prompts(PROMPTS), uniform(2, backbone.process))
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


def test_the_network_sees_its_prompt_and_its_time(load, variant):
    backbone = load(variant)
    x, cond = noise(backbone), backbone.encode_prompts(PROMPTS)
    with torch.no_grad():
        first = backbone.network(x, cond["prompt_embeds"], torch.tensor([499, 499]), image_rotary_emb=backbone._rotary_embedding(x)).sample
        later = backbone.network(x, cond["prompt_embeds"], torch.tensor([99, 99]), image_rotary_emb=backbone._rotary_embedding(x)).sample
        other = backbone.network(x, cond["prompt_embeds"].flip(0), torch.tensor([499, 499]), image_rotary_emb=backbone._rotary_embedding(x)).sample
    assert (first - later).abs().mean() > 1e-3 and (first - other).abs().mean() > 1e-3


def test_our_attention_is_the_library_s_with_any_kernel(load, variant):
    backbone = load(variant)
    x, cond, t = noise(backbone), backbone.encode_prompts(PROMPTS), torch.full((2,), 0.5)
    with torch.no_grad():
        library = backbone.predict_x0(backbone.network, x, t, cond)
        backbone.use_xformers(backbone.network)
        asked = list(backbone.network.attn_processors.values())
        assert all(type(one) is JointAttention and one.kernel == "xformers" for one in asked)
        for processor in asked:  # xformers itself runs on a GPU only
            processor.kernel = "_native_math"
        ours = backbone.predict_x0(backbone.network, x, t, cond)
    torch.testing.assert_close(ours, library, atol=1e-5, rtol=1e-5)


def test_xformers_without_a_gpu_is_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"model.attention='xformers' needs a CUDA device \(this is cpu\).*pip install 'tdmvid\[xformers\]', or choose 'sdpa'"):
        check_attention("xformers", torch.device("cpu"))
    check_attention("sdpa", torch.device("cpu"))


def test_decode_is_the_pipeline_s(load, stock, variant):
    backbone, pipeline = load(variant), stock(variant)
    latents = 0.5 * noise(backbone, batch=5)
    kept = latents[:, 1:] if variant == "temporal" else latents  # the pipeline drops its padding first
    with torch.no_grad():
        expected = pipeline.video_processor.postprocess_video(pipeline.decode_latents(kept), output_type="pt")
    videos = backbone.decode(latents)
    assert videos.shape == (5, 3, FRAMES[variant], 32, 32)
    torch.testing.assert_close((videos.transpose(1, 2) + 1) / 2, expected, atol=1e-5, rtol=0)


def test_a_gradient_reaches_the_latents_and_weights_stay_frozen(load, variant):
    backbone = load(variant)
    x = noise(backbone).requires_grad_()
    backbone.predict_x0(backbone.network, x, torch.full((2,), 0.5), backbone.encode_prompts(PROMPTS)).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_bfloat16_weights_give_float32_predictions_near_the_exact_ones(load, tiny_cogvideox):
    exact = load("rotary")
    half = load_backbone(ModelConfig(path=str(tiny_cogvideox("rotary")), dtype="bfloat16"), exact.size)
    x, cond, t = noise(exact), exact.encode_prompts(PROMPTS), torch.full((2,), 0.5)
    with torch.no_grad():
        a, b = (one.predict_x0(one.network, x, t, cond) for one in (exact, half))
    assert b.dtype == torch.float32 and {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert 0 < (a - b).abs().mean() < 0.03 * a.abs().mean()


@pytest.mark.parametrize("changes, message", [
    ({"height": 40}, r"video.height=40 .*16"),
    ({"width": 31}, r"video.width=31 .*16"),
    ({"frames": 6}, r"video.frames=6: .*8n \+ 1 frames, e.g. 9"),
    ({"frames": 8}, r"video.frames=8: .*8n \+ 1"),
])
def test_an_impossible_size_is_refused_with_the_rule(load, changes, message):
    with pytest.raises(ValueError, match=message):
        load("sincos", **changes)


@pytest.mark.parametrize("changes", [{"frames": 0}, {"height": -8}])
def test_an_empty_clip_is_refused(changes):
    with pytest.raises(ValueError, match="at least 1"):
        ClipSize(**changes)


@pytest.mark.parametrize("path, message", [
    ("", "model.path is empty"),
    ("/nowhere/at/all", "no folder here and no hub id"),
    ("./relative", "no folder here and no hub id"),
])
def test_a_wrong_path_is_refused_before_the_network_is_asked(path, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(ModelConfig(path=path), ClipSize(9, 32, 32))


def test_a_folder_that_is_no_pipeline_or_of_another_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model_index.json"):
        load_backbone(ModelConfig(path=str(tmp_path)), ClipSize(9, 32, 32))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ValueError, match="is a FluxPipeline: known pipeline classes are .*CogVideoXPipeline"):
        load_backbone(ModelConfig(path=str(tmp_path)), ClipSize(9, 32, 32))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="model.dtype='int8': choose float32, bfloat16 or float16"):
        ModelConfig(dtype="int8")


def test_the_text_fingerprint_follows_the_text_encoder(load, tiny_cogvideox, tmp_path):
    import shutil

    first = load("sincos").text_fingerprint()
    assert first == load("sincos").text_fingerprint()
    copy = shutil.copytree(tiny_cogvideox("sincos"), tmp_path / "copy")
    size = ClipSize(9, 32, 32)
    assert load_backbone(ModelConfig(path=str(copy)), size).text_fingerprint() == first
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert load_backbone(ModelConfig(path=str(copy)), size).text_fingerprint() != first
