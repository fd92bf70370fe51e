"""The embedded image-to-video teacher: how it is put together, and that it keeps a given frame."""

import json

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file

from examples.shapes.show_image_student import picture
from examples.shapes.train_image import write_folder
from tdmvid.config import embedded
from tdmvid.config.resources import find_model
from tdmvid.shapes import TEACHER, judge, metrics, world

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.0.attn1.to_q"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tdmvid"


def test_a_lora_is_added_and_the_projection_replaced(tmp_path):
    generator = torch.Generator().manual_seed(0)
    wide, down, up = (
        torch.randn(shape, generator=generator).half()
        for shape in ((256, 32, 2, 2), (2, 256), (256, 2))
    )
    part = {
        "patch_embed.proj.weight": wide,
        f"{LAYER}.lora_A.weight": down,
        f"{LAYER}.lora_B.weight": up,
    }
    write_folder(tmp_path / "made", part)
    old, new = load_file(TEACHER / WEIGHTS), load_file(tmp_path / "made" / WEIGHTS)
    assert old.keys() == new.keys()
    merged = (old[f"{LAYER}.weight"] + up.double() @ down.double()).half()
    assert torch.equal(new[f"{LAYER}.weight"], merged)
    assert torch.equal(new["patch_embed.proj.weight"], wide)
    changed = {"patch_embed.proj.weight", f"{LAYER}.weight"}
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - changed)
    config = json.loads((tmp_path / "made/transformer/config.json").read_text())
    assert (config["in_channels"], config["out_channels"]) == (32, 16)
    index = json.loads((tmp_path / "made/model_index.json").read_text())
    assert index["_class_name"] == "CogVideoXImageToVideoPipeline"


def test_the_teacher_is_found_where_it_was_made_and_its_command_is_named(cache):
    with refused("model.path=shapes_i2v", str(cache / "shapes_i2v"), "make_teacher --stage image"):
        find_model("shapes_i2v")
    (cache / "shapes_i2v").mkdir(parents=True)
    (cache / "shapes_i2v" / "model_index.json").write_text("{}")
    assert find_model("shapes_i2v") == str(cache / "shapes_i2v")


def test_the_widened_teacher_starts_as_the_old_one():
    """The new channels have zero weights, so any image gives the prediction without one."""
    from diffusers import CogVideoXTransformer3DModel

    from examples.shapes.train_image import widen

    network = CogVideoXTransformer3DModel.from_pretrained(
        TEACHER, subfolder="transformer", torch_dtype=torch.float32
    )
    x, text, t = torch.randn(1, 3, 16, 8, 8), torch.randn(1, 16, 128), torch.tensor([500])
    with torch.no_grad():
        before = network(x, text, t).sample
        widen(network)
        after = network(torch.cat([x, torch.randn_like(x)], 2), text, t).sample
    assert network.config.in_channels == 32
    torch.testing.assert_close(after, before)


def test_the_distance_of_the_first_frame_is_in_grey_levels():
    videos = torch.zeros(2, 3, 9, 8, 8)
    videos[1, :, 1:] = 1  # later frames do not count
    given = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)])
    torch.testing.assert_close(
        metrics.first_frame_distance(videos, given), torch.tensor([0, 12.75])
    )


@pytest.mark.slow
def test_the_fine_tuning_resumes_and_its_result_is_a_stock_pipeline(tmp_path, monkeypatch):
    """Two steps at once and one after the other give the same weights."""
    from dataclasses import replace

    from diffusers import CogVideoXImageToVideoPipeline

    from examples.shapes import train_image

    monkeypatch.setattr(train_image, "SHARD", 10)
    monkeypatch.setattr(train_image, "schedule", lambda *_: 1.0)
    recipe = train_image.Recipe(iterations=2, batch=2, videos=10)
    for name, runs in (("whole", (2,)), ("cut", (1, 2))):
        for iterations in runs:
            train_image.train_image_teacher(
                tmp_path / name,
                tmp_path / f"{name}_out",
                replace(recipe, iterations=iterations),
                device="cpu",
            )
    whole, cut = (load_file(tmp_path / f"{name}_out" / WEIGHTS) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[n], cut[n]) for n in whole)
    assert whole["patch_embed.proj.weight"][:, 16:].abs().max() > 0
    pipe = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "whole_out")
    assert pipe.transformer.config.in_channels == 32


def test_a_picture_has_the_given_frames_left_of_every_sampler_s_videos():
    given = torch.full((2, 3, 4, 6), -1.0)
    videos = [torch.full((2, 3, 5, 4, 6), shade) for shade in (0.25, 0.5)]
    whole = picture(given, videos)
    assert [int((whole == shade).sum()) for shade in (0.25, 0.5)] == [2 * 3 * 5 * 4 * 6] * 2
    assert (whole[..., :6] == -1).sum() == 2 * 2 * 3 * 4 * 6  # beside each of two samplers


@pytest.mark.slow
@pytest.mark.skipif(
    not (embedded.image_folder() / "model_index.json").is_file(),
    reason="shapes_i2v was not made (examples/shapes/README.md)",
)
def test_the_stock_pipeline_keeps_the_given_frame_and_follows_the_caption():
    from diffusers import CogVideoXImageToVideoPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    pipe = CogVideoXImageToVideoPipeline.from_pretrained(
        find_model("shapes_i2v"), torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    captions = ["a red triangle moving left", "a cyan square moving right"]
    things = [world.parse(caption) for caption in captions]
    given = world.draw_videos(things, torch.Generator().manual_seed(1))[:, :, 0]
    frames = pipe(
        (given + 1) / 2,
        captions,
        num_inference_steps=20,
        guidance_scale=2.0,
        max_sequence_length=16,
        num_frames=9,
        height=64,
        width=64,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).frames
    videos = frames.transpose(1, 2) * 2 - 1
    assert judge.attributes(judge.load_judge(), videos, things)["all"].all()
    kept = metrics.first_frame_distance(videos, given)
    other = metrics.first_frame_distance(videos, given.flip(0))
    assert kept.max() < 8 and other.min() > 2 * kept.max()
