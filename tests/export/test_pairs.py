"""A student with two experts for other programs: two files each, and a workflow that uses both."""

import json

import pytest
from refusals import refused
from safetensors.torch import load_file
from test_families_export import Student

from tdmvid.adapters.layouts import layouts_of
from tdmvid.export.bundle import write_bundles
from tdmvid.export.request import ExportRequest

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
