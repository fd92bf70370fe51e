"""A student with two experts for other programs: two files each, and a workflow that uses both."""

import json

import pytest
import torch
from peft import LoraConfig
from refusals import refused
from safetensors.torch import load_file, save_file
from test_families_export import Student

from tdmvid.adapters.layouts import layouts_of
from tdmvid.adapters.read import read_lora
from tdmvid.backbones.lora_files import LORA_FILE, SECOND_FILE, metadata_of
from tdmvid.backbones.registry import load_backbone
from tdmvid.export.bundle import write_bundles
from tdmvid.export.request import ExportRequest
from tdmvid.export.sources import export_published, export_tuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return Student("WanPipeline", tmp_path_factory.mktemp("base"), "experts")


def test_every_format_has_a_file_for_each_expert_and_gives_the_student(student, tmp_path):
    out, formats = tmp_path / "lora", tuple(layouts_of("WanPipeline"))
    facts = write_bundles({out: student.exported}, ExportRequest(formats))[out]
    assert facts["formats"].keys() == facts["errors"].keys() == set(formats)
    assert max(facts["error"], *facts["errors"].values()) < facts["tolerance"] == 1e-5
    for paths in facts["formats"].values():
        high, low = (load_file(out / path) for path in paths)
        assert "high_noise" in paths[0] and "low_noise" in paths[1]
        assert high.keys() == low.keys() and any((high[key] != low[key]).any() for key in high)
    card = (out / "README.md").read_text()
    assert all(path in card for paths in facts["formats"].values() for path in paths)
    nodes = json.loads((out / "comfyui" / "workflow.json").read_text())
    first, second = (
        [float(x) for x in nodes[name]["inputs"]["sigmas"].split(",")]
        for name in ("sigmas", "sigmas_2")
    )
    times = [*student.grid.descending(), 0.0]
    assert first[-1] == second[0] and [*first, *second[1:]] == pytest.approx(times, abs=1e-6)
    assert min(first[:-1]) >= student.backbone.network.split.time > second[0]
    loras = [nodes[name]["inputs"]["lora_name"] for name in ("lora", "lora_2")]
    assert [f"comfyui/{name}" for name in loras] == facts["formats"]["comfyui"]
    assert nodes["decode"]["inputs"]["samples"] == ["sample_2", 0]
    assert nodes["sample_2"]["inputs"]["latent_image"] == ["sample", 0]


def test_a_pair_is_no_one_network(student, tmp_path):
    with refused("fuse"):
        write_bundles({tmp_path / "lora": student.exported}, ExportRequest(fuse=True))


@pytest.fixture
def published(student, tmp_path):
    """A pair as on the hub: names with "high" and "low", other ranks and alphas."""
    generator, folder = torch.Generator().manual_seed(3), tmp_path / "pair"
    folder.mkdir()
    for name, rank, alpha in (("High_noise_r4", 4, 2.0), ("low-noise", 2, 3.0)):
        tensors = {}
        for layer in ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2"):
            linear = student.backbone.network.get_submodule(f"transformer.{layer}")
            linear = getattr(linear, "base_layer", linear)
            sizes = {"A": (rank, linear.in_features), "B": (linear.out_features, rank)}
            for side, shape in sizes.items():
                tensors[f"transformer.{layer}.lora_{side}.weight"] = torch.randn(
                    shape, generator=generator
                )
        settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["to_q", "net.2"])
        text = json.dumps({f"transformer.{k}": v for k, v in metadata_of(settings).items()})
        save_file(tensors, folder / f"{name}.safetensors", {"lora_adapter_metadata": text})
    return folder


def test_a_published_pair_is_exported_with_the_ranks_and_scales_of_each_expert(
    student, published, tmp_path
):
    base = load_backbone(student.backbone.config, student.backbone.size)
    request = ExportRequest(tuple(layouts_of("WanPipeline")), prompts=("a red ring",))
    facts = export_published(tmp_path / "out", published, base, student.grid, request, scale=0.5)
    assert max(facts["error"], *facts["errors"].values()) < facts["tolerance"] == 1e-5
    assert facts["original"]["by"].startswith("diffusers") and facts["original"]["error"] < 1e-5
    sizes = [
        {len(x) for key, x in load_file(tmp_path / "out" / name).items() if "lora_A" in key}
        for name in (LORA_FILE, SECOND_FILE)
    ]
    assert sizes == [{4}, {2}]
    again = load_backbone(student.backbone.config, student.backbone.size)
    both = read_lora(tmp_path / "out", again.lora, again.network)
    scales = {name.partition(".")[0]: layer.scale for name, layer in both.layers.items()}
    assert scales == {"transformer": 0.25, "transformer_2": 0.75}


def test_a_pair_of_one_file_is_refused_with_the_names_to_use(student, published, tmp_path):
    base = load_backbone(student.backbone.config, student.backbone.size)
    (high,) = published.glob("High*")
    with refused(high, "one file", LORA_FILE, SECOND_FILE):
        read_lora(high, base.lora, base.network)
    next(published.glob("low*")).unlink()
    with refused(published, SECOND_FILE, "no files with 'low'", high.name):
        read_lora(published, base.lora, base.network)


def test_a_fine_tuned_network_is_not_half_of_a_pair(student, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    base = load_backbone(student.backbone.config, student.backbone.size)
    with refused(f"--network '{tmp_path}'", "two experts"):
        export_tuned(tmp_path / "out", tmp_path, base, student.grid, ExportRequest(rank=4))
