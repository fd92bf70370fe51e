"""Downloads from a hub server on loopback, from repositories with the layouts of real ones."""

import json
import os
import subprocess
import sys
from collections import Counter

import huggingface_hub.constants
import pytest
from hub_server import LARGE, Repository, serve
from launched import ROOT
from refusals import refused

from tdmvid.backbones.registry import ARCHITECTURES, resolve
from tdmvid.config import ModelConfig

NET, TEXT = "diffusion_pytorch_model", "model"
SHARDS = ("-00001-of-00002", "-00002-of-00002")


def repository(architecture: str, *files: str, **options) -> Repository:
    """Return the configs of a real model, with weight files of a few bytes."""
    folder = ARCHITECTURES / architecture
    there = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    index = json.loads((folder / "model_index.json").read_text())
    for part in index:
        if part.startswith("tokenizer"):
            there[f"{part}/tokenizer_config.json"] = b'{"of": "%s"}' % part.encode()
            there[f"{part}/spiece.model"] = b"pieces of " + part.encode()
            there[f"{part}/chat_template.jinja"] = b"chats of " + part.encode()
    there |= {path: f"{path} ".encode() * 20 for path in files}
    there |= {"README.md": b"# a model", ".gitattributes": b"*.bin lfs", "teaser.mp4": b"video"}
    return Repository(there, **options)


def shards(path: str, *suffixes: str) -> list[str]:
    return [f"{path}{shard}.safetensors" for shard in suffixes or SHARDS]


def layouts():
    """Return name, architecture, files on the hub, required files and settings of each case."""
    sdxl = [
        "sd_xl_base_1.0.safetensors",
        f"vae_1_0/{NET}.safetensors",
        *(
            f"{part}/{name}{variant}.safetensors"
            for part, name in (("unet", NET), ("vae", NET), ("text_encoder", TEXT))
            for variant in ("", ".fp16")
        ),
        f"text_encoder_2/{TEXT}.safetensors",
        f"text_encoder_2/{TEXT}.fp16.safetensors",
        "unet/model.onnx_data",
        "text_encoder/flax_model.msgpack",
        "text_encoder/pytorch_model.bin",
    ]
    sdxl_parts = ("unet/", "vae/", "text_encoder/", "text_encoder_2/")
    sd15 = [
        "v1-5-pruned.ckpt",
        "v1-5-pruned-emaonly.safetensors",
        f"safety_checker/{TEXT}.safetensors",
        f"unet/{NET}.non_ema.safetensors",
        *(
            f"{part}/{name}{variant}.{end}"
            for part, name in (("unet", NET), ("vae", NET), ("text_encoder", TEXT))
            for variant in ("", ".fp16")
            for end in ("bin", "safetensors")
        ),
    ]
    sd3 = [
        "sd3_medium.safetensors",
        "text_encoders/t5xxl_fp16.safetensors",
        f"transformer/{NET}.safetensors",
        f"vae/{NET}.safetensors",
        f"text_encoder/{TEXT}.safetensors",
        f"text_encoder/{TEXT}.fp16.safetensors",
        f"text_encoder_2/{TEXT}.safetensors",
        *shards(f"text_encoder_3/{TEXT}"),
        *shards(f"text_encoder_3/{TEXT}.fp16"),
    ]
    wan = [
        *shards(f"transformer/{NET}"),
        f"vae/{NET}.safetensors",
        *shards(f"text_encoder/{TEXT}"),
        "assets/logo.png",
    ]
    half_only = [
        f"transformer/{NET}.fp16.safetensors",
        f"vae/{NET}.safetensors",
        *shards(f"text_encoder/{TEXT}"),
    ]

    bins = [
        "v1-5-pruned.ckpt",
        f"unet/{NET}.bin",
        f"vae/{NET}.bin",
        "text_encoder/pytorch_model.bin",
        f"unet/{NET}.fp16.bin",
        f"unet/{NET}.non_ema.bin",
    ]

    def of(names, parts, variant=""):
        return {
            name
            for name in names
            if name.startswith(parts)
            and name.endswith(".safetensors")
            and (f".{variant}" in name if variant else name.count(".") == 1)
        }

    return {
        "sdxl": ("stabilityai--stable-diffusion-xl-base-1.0", sdxl, of(sdxl, sdxl_parts), {}),
        "sdxl fp16": (
            "stabilityai--stable-diffusion-xl-base-1.0",
            sdxl,
            of(sdxl, sdxl_parts, "fp16"),
            {"variant": "fp16"},
        ),
        "sd15": (
            "stable-diffusion-v1-5--stable-diffusion-v1-5",
            sd15,
            of(sd15, ("unet/", "vae/", "text_encoder/")),
            {},
        ),
        "sd3": (
            "stabilityai--stable-diffusion-3-medium-diffusers",
            sd3,
            of(
                sd3, ("transformer/", "vae/", "text_encoder/", "text_encoder_2/", "text_encoder_3/")
            ),
            {},
        ),
        "sd3 fp16, which two parts lack": (
            "stabilityai--stable-diffusion-3-medium-diffusers",
            sd3,
            {
                f"transformer/{NET}.safetensors",
                f"vae/{NET}.safetensors",
                f"text_encoder/{TEXT}.fp16.safetensors",
                f"text_encoder_2/{TEXT}.safetensors",
                *shards(f"text_encoder_3/{TEXT}.fp16"),
            },
            {"variant": "fp16"},
        ),
        "wan": ("Wan-AI--Wan2.1-T2V-14B-Diffusers", wan, {*wan} - {"assets/logo.png"}, {}),
        "cogvideox": ("THUDM--CogVideoX-2b", wan, {*wan} - {"assets/logo.png"}, {}),
        "bin only": ("stable-diffusion-v1-5--stable-diffusion-v1-5", bins, {*bins[1:4]}, {}),
        "half only": ("THUDM--CogVideoX-5b", half_only, {*half_only}, {}),
    }


LAYOUTS = layouts()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`hub(repository)` starts a server with one repository, owner/name, and makes it the client's
    hub.

    Downloads go to a cache of this test.
    """
    held = []

    def start(repository: Repository):
        started = serve({"owner/name": repository})
        held.append(started)
        there = started.__enter__()
        template = "/{repo_id}/resolve/{revision}/{filename}"
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", there.address)  # set by HF_ENDPOINT
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", there.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        return there

    yield start
    for started in held:
        started.__exit__(None, None, None)


def weights(there) -> set[str]:
    return {path for path, count in there.sent.items() if count and path.endswith(LARGE)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exactly_the_needed_files_arrive_once(hub, layout):
    architecture, files, needed, settings = LAYOUTS[layout]
    model = repository(architecture, *files)
    there = hub(model)
    folder = resolve(ModelConfig(path="owner/name", **settings))
    assert weights(there) == needed
    assert all(there.sent[path] == len(model.files[path]) for path in there.sent)
    here = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert here == set(there.sent) and "teaser.mp4" not in here
    tokenizers = {path for path in model.files if path.endswith(("spiece.model", ".jinja"))}
    assert tokenizers <= here
    before = there.sent.copy()
    assert resolve(ModelConfig(path="owner/name", **settings)) == folder
    assert there.sent == before


def test_a_plan_takes_no_weights(hub):
    architecture, files, _, _ = LAYOUTS["sdxl"]
    there = hub(repository(architecture, *files))
    resolve(ModelConfig(path="owner/name"), weights=False)
    assert not weights(there) and there.sent["unet/config.json"]


@pytest.mark.parametrize("said", [True, False], ids=["HF_HUB_OFFLINE", "unreachable"])
def test_a_second_run_needs_no_network(hub, monkeypatch, said):
    architecture, files, _, _ = LAYOUTS["half only"]
    hub(repository(architecture, *files))
    folder = resolve(ModelConfig(path="owner/name"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", said)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert resolve(ModelConfig(path="owner/name")) == folder


def test_a_connection_that_breaks_resumes_where_it_was(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10)
    architecture, files, needed, _ = LAYOUTS["cogvideox"]
    model = repository(architecture, *files)
    [first, *_] = sorted(needed)
    model.cut = Counter({first: 2})
    there = hub(model)
    folder = resolve(ModelConfig(path="owner/name"))
    assert (folder / first).read_bytes() == model.files[first]
    assert there.sent[first] == len(model.files[first])


def test_a_download_that_breaks_off_keeps_what_has_come(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    architecture, files, needed, _ = LAYOUTS["cogvideox"]
    model = repository(architecture, *files)
    broken = max(needed)
    model.cut = Counter({broken: 10**6})
    there = hub(model)
    with refused("model.path='owner/name'", "again"):
        resolve(ModelConfig(path="owner/name"))
    model.cut = Counter()
    came = {path: count for path, count in there.sent.items() if path != broken}
    resolve(ModelConfig(path="owner/name"))
    assert {path: there.sent[path] for path in came} == came and weights(there) == needed


@pytest.mark.parametrize("whole", [True, False], ids=["weights", "configs"])
def test_a_gated_model_is_explained(hub, whole):
    architecture, files, _, _ = LAYOUTS["sd3"]
    hub(repository(architecture, *files, gated=True))
    page = "https://huggingface.co/owner/name"
    with refused("model.path='owner/name'", page, "hf auth login"):
        resolve(ModelConfig(path="owner/name"), weights=whole)


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"path": "owner/other"}, ["model.path='owner/other'"]),
        ({"revision": "v9"}, ["model.revision='v9'", "'owner/name'"]),
        ({"variant": "bf16"}, ["model.variant='bf16'", "'owner/name'"]),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, change, facts):
    architecture, files, _, _ = LAYOUTS["sdxl"]
    hub(repository(architecture, *files))
    with refused(*facts):
        resolve(ModelConfig(**({"path": "owner/name"} | change)))


def test_a_repository_in_another_layout_is_named(hub):
    """Example: Wan-AI/Wan2.1-T2V-14B, next to Wan-AI/Wan2.1-T2V-14B-Diffusers."""
    there = hub(Repository({"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"x"}))
    with refused("model.path='owner/name'", "model_index.json"):
        resolve(ModelConfig(path="owner/name"))
    assert not weights(there)


@pytest.mark.slow
def test_a_run_trains_a_model_of_the_hub_without_a_network(
    hub, tiny_json, tiny_cogvideox, tmp_path
):
    folder = tiny_cogvideox("sincos")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    there = hub(Repository({name: path.read_bytes() for name, path in files.items()}))
    resolve(ModelConfig(path="owner/name"))
    assert weights(there) == {name for name in files if name.endswith(LARGE)}
    settings = json.loads(tiny_json.read_text()) | {"model": {"path": "owner/name"}, "steps": 1}
    settings["prompts"]["cache"] = str(tmp_path / "embedded")
    (tmp_path / "run.json").write_text(json.dumps(settings))
    environment = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tdmvid", "train", "--config", "run.json", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").is_file()
