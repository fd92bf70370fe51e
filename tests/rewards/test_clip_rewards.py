"""Rewards of CLIP models, on a tiny random model."""

import pytest
import torch
from families.stable_diffusion import clip_tokenizer
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from tdmvid.rewards import find_function
from tdmvid.rewards.clip import HEAD, MEAN, STD, Clip

PROMPTS = ["a red ring", "b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP model of 16 pixels with its tokenizer, and an aesthetic head."""
    path = tmp_path_factory.mktemp("clip")
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config=tower | words,
        vision_config=tower | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    clip_tokenizer().save_pretrained(path)
    save_file({"weight": torch.ones(1, 8), "bias": torch.tensor([5.0])}, path / HEAD)
    return path


@pytest.fixture(scope="module")
def expected(folder):
    """Cosines [B, frames] of the model itself, for samples of its own size."""
    samples = torch.rand(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = clip_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    cosines, images = [], []
    with torch.no_grad():
        for frame in (0, 2, 4):
            pixels = ((samples[:, :, frame] + 1) / 2 - mean) / std
            found = model(pixel_values=pixels, **tokens)
            cosines.append((found.image_embeds * found.text_embeds).sum(1))
            images.append(found.image_embeds)
    return samples, torch.stack(cosines, 1), torch.stack(images, 1)


@pytest.mark.parametrize("name", ["clip", "hps"])
def test_the_score_is_the_model_s_cosine(folder, expected, name):
    samples, cosines, _ = expected
    found = find_function(name, str(folder))(samples, PROMPTS)
    torch.testing.assert_close(found, 100 * cosines.mean(1), rtol=1e-4, atol=1e-4)


def test_the_aesthetic_score_is_the_head_s(folder, expected):
    samples, _, images = expected
    found = find_function("aesthetic", str(folder))(samples, PROMPTS)
    torch.testing.assert_close(found, images.mean(1).sum(1) + 5, rtol=1e-4, atol=1e-4)


def test_samples_of_any_size_are_scaled_to_the_model_s(folder):
    """A sample and the same with twice the pixels score alike; what is cropped does not count."""
    clip = find_function("clip", str(folder))
    small = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2)), size=(16, 16)
    )[:, :, None]
    large = small.repeat_interleave(2, 3).repeat_interleave(2, 4)
    wide = torch.cat([torch.ones(1, 3, 1, 32, 8), large, -torch.ones(1, 3, 1, 32, 8)], 4)
    scores = [float(clip(each, ["a"])) for each in (small, large, wide)]
    assert scores[1] == pytest.approx(scores[0], abs=2) and scores[2] == pytest.approx(
        scores[1], abs=2
    )


def test_hps_sees_the_whole_of_a_wide_sample_between_black_bars(folder):
    wide = torch.ones(1, 3, 16, 32)
    wide[..., :8] = 0  # outside the central square
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    whole, middle = (
        (Clip(str(folder), function="hps", whole=whole)._pixels(wide)[0] * std + mean).round()
        for whole in (True, False)
    )
    assert not whole[:, :4].any() and not whole[:, 12:].any()
    assert (whole[:, 4:12, 5:] == 1).all() and (middle == 1).all()
    hps, clip = (find_function(name, str(folder)) for name in ("hps", "clip"))
    assert float(hps(wide[:, :, None], ["a"])) != float(clip(wide[:, :, None], ["a"]))


@pytest.mark.parametrize("lacking", ["model.safetensors", "config.json"])
def test_missing_weights_are_named_before_anything_is_loaded(folder, tmp_path, lacking):
    for file in folder.iterdir():
        if file.name not in (lacking, HEAD):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    if lacking == "config.json":
        (tmp_path / "config.json").unlink(missing_ok=True)
    with refused(f"rewards.model={str(tmp_path)!r}", "clip", "save_pretrained"):
        find_function("clip", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("clip", "vocab.json"), ("hps", "merges.txt"), ("aesthetic", "")],
)
def test_a_model_that_reads_prompts_needs_its_tokenizer(folder, tmp_path, name, lacking):
    """transformers would make a tokenizer without words, and every prompt would be the same."""
    for file in ("config.json", "model.safetensors", HEAD):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    if not lacking:
        find_function(name, str(tmp_path))
        return
    with refused(f"rewards.model={str(tmp_path)!r}", lacking, "with its tokenizer"):
        find_function(name, str(tmp_path))


def test_weights_under_other_names_are_missing(folder, tmp_path):
    """transformers would initialise them at random, and differently in every process."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    total = len(weights)
    save_file(
        {f"visual.{key}": value for key, value in weights.items()}, tmp_path / "a.safetensors"
    )
    (tmp_path / "model.safetensors").unlink()
    with refused(f"rewards.model={str(tmp_path)!r}", f"{total} of {total} parameters", "e.g."):
        find_function("clip", str(tmp_path))
    part = dict(list(weights.items())[1:])
    save_file(part, tmp_path / "model.safetensors")
    with refused("1 of", repr(next(iter(weights)))):
        find_function("hps", str(tmp_path))


def test_another_kind_of_model_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with refused(f"rewards.model={str(tmp_path)!r}", '"model_type": "clip"'):
        find_function("clip", str(tmp_path))


def test_a_missing_head_is_named(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with refused(f"rewards.model={str(tmp_path)!r}", HEAD):
        find_function("aesthetic", str(tmp_path))


def test_a_name_that_cannot_be_downloaded_is_named(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with refused("rewards.model='no/such'", "clip"):
        find_function("clip", "no/such")
