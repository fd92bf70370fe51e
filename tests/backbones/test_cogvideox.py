"""CogVideoX specifics: sizes, and folders that are refused. The rest is in test_contract.py."""

import copy

import pytest
import torch
from diffusers import CogVideoXPipeline
from refusals import refused
from scales import assert_close

from tdmvid.backbones.attention import check_attention
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.cogvideox_parallel import JointAttention
from tdmvid.backbones.registry import load_backbone
from tdmvid.config import ClipSize, ModelConfig
from tdmvid.diffusion.grid import uniform
from tdmvid.diffusion.sampler import ddim

PROMPTS = ["a red circle moves left", "a blue square"]


@pytest.fixture
def load(tiny_cogvideox):
    """Loads a backbone of 32 x 32 pixels."""

    def load(variant, frames=9, height=32, width=32):
        size = ClipSize(frames=frames, height=height, width=width)
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


@pytest.mark.parametrize(
    "variant, height, width", [("rotary", 48, 64), ("sincos", 48, 64), ("temporal", 16, 32)]
)
def test_another_size_than_the_model_s_gives_the_stock_latents(load, stock, variant, height, width):
    backbone, pipeline = load(variant, height=height, width=width), stock(variant)
    z = noise(backbone)
    expected = pipeline(
        PROMPTS,
        height=height,
        width=width,
        num_frames=(z.shape[1] - 1) * 4 + 1,
        num_inference_steps=2,
        guidance_scale=1.0,
        latents=z,
        output_type="latent",
        max_sequence_length=12,
    ).frames
    denoiser = backbone.denoiser(backbone.network)
    ours = ddim(denoiser, z, backbone.encode_prompts(PROMPTS), uniform(2, backbone.process))
    assert_close(ours, expected, 2e-5)


@pytest.mark.parametrize("variant", ["sincos", "rotary", "temporal"])
def test_our_attention_is_the_library_s_with_any_kernel(load, variant):
    backbone = load(variant)
    x, cond, t = noise(backbone), backbone.encode_prompts(PROMPTS), torch.full((2,), 0.5)
    with torch.no_grad():
        library = backbone.predict_x0(backbone.network, x, t, cond)
        backbone.set_attention(backbone.network, "xformers")
        asked = list(backbone.network.attn_processors.values())
        assert all(type(one) is JointAttention and one.kernel == "xformers" for one in asked)
        for processor in asked:  # xformers itself runs only on a GPU
            processor.kernel = "_native_math"
        ours = backbone.predict_x0(backbone.network, x, t, cond)
    assert_close(ours, library, 1e-5)


def input_gradient(backbone, dtype, *, float32):
    """Of a call on the same weights and inputs: d |x0|^2 / d x."""
    network = copy.deepcopy(backbone.network).to(dtype)
    if float32:
        backbone.set_attention(network, "float32")
    x, t = noise(backbone).requires_grad_(), torch.full((2,), 0.5)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = network(
            **backbone.inputs(x.to(dtype), t, backbone.encode_prompts(PROMPTS).to(dtype)),
            return_dict=False,
        )[0]
    return torch.autograd.grad(out.float().square().sum(), x)[0]


@pytest.mark.parametrize("variant", ["sincos", "rotary", "temporal"])
def test_attention_in_float32_has_the_gradient_of_the_plain_one(load, variant):
    backbone = load(variant)
    exact = input_gradient(backbone, torch.float32, float32=False)
    assert_close(input_gradient(backbone, torch.float32, float32=True), exact, 1e-5)
    error = {
        kind: (input_gradient(backbone, torch.bfloat16, float32=kind) - exact).norm() / exact.norm()
        for kind in (True, False)
    }
    assert 0 < error[True] < 1.2 * error[False] < 0.1


def test_a_family_without_float32_attention_says_so():
    with refused("model.attention='float32'", "Linear", "'sdpa'"):
        Backbone.set_attention(torch.nn.Linear(1, 1), "float32")


def test_xformers_without_a_gpu_is_refused_before_anything_is_loaded():
    with refused("model.attention='xformers'", "needs a CUDA device", "'auto'"):
        check_attention("xformers", torch.device("cpu"))
    check_attention("sdpa", torch.device("cpu"))


@pytest.mark.parametrize(
    "changes, facts",
    [
        ({"height": 40}, ("video.height=40", "16")),
        ({"width": 31}, ("video.width=31", "16")),
        ({"frames": 6}, ("video.frames=6", "8n + 1", "9")),
        ({"frames": 8}, ("video.frames=8", "8n + 1")),
    ],
)
def test_an_impossible_size_is_refused_with_the_rule(load, changes, facts):
    with refused(*facts):
        load("sincos", **changes)


@pytest.mark.parametrize(
    "changes, fact", [({"frames": 0}, "frames=0"), ({"height": -8}, "height=-8")]
)
def test_an_empty_clip_is_refused(changes, fact):
    with refused(fact):
        ClipSize(**changes)


@pytest.mark.parametrize(
    "path, fact",
    [
        ("", "model.path"),
        ("/nowhere/at/all", "'/nowhere/at/all'"),
        ("./relative", "'./relative'"),
    ],
)
def test_a_wrong_path_is_refused_before_the_network_is_asked(path, fact):
    with refused(fact):
        load_backbone(ModelConfig(path=path), ClipSize(9, 32, 32))


def test_a_folder_that_is_no_pipeline_or_of_another_family_is_refused(tmp_path):
    with refused("model_index.json", tmp_path):
        load_backbone(ModelConfig(path=str(tmp_path)), ClipSize(9, 32, 32))
    (tmp_path / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with refused("KandinskyPipeline", "CogVideoXPipeline"):
        load_backbone(ModelConfig(path=str(tmp_path)), ClipSize(9, 32, 32))


def test_an_unknown_dtype_is_refused():
    with refused("model.dtype='int8'", "bfloat16"):
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
