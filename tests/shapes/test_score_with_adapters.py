"""`tdmvid score shapes` loads the user's LoRAs into the teacher that the run had them in."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tdmvid.adapters.teacher import adapters_of
from tdmvid.backbones.registry import find_family
from tdmvid.cli.main import main
from tdmvid.config import ModelConfig, RunConfig, to_dict
from tdmvid.shapes import TEACHER, evaluate


@pytest.mark.parametrize("option", ["--run", "--lora"])
def test_the_teacher_has_the_loras_of_the_run(tmp_path, monkeypatch, option):
    folder, family = find_family(ModelConfig(path=str(TEACHER)), weights=False)
    with torch.device("meta"):
        network = family.spec.empty_network(folder)
    name, layer = next((n, m) for n, m in network.named_modules() if n.endswith("to_q"))
    key, path = f"{family.lora.prefix}.{name}", tmp_path / "style.safetensors"
    factors = torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1)
    save_file(dict(zip((f"{key}.lora_A.weight", f"{key}.lora_B.weight"), factors)), path)
    model = {"path": str(TEACHER), "adapters": [{"path": str(path), "scale": 0.5}]}
    config = to_dict(RunConfig())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model": config["model"] | model}))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "export.json").write_text(json.dumps({"model": model, "steps": 4}))
    seen = []
    monkeypatch.setattr(evaluate, "evaluate", lambda backbone, *rest: seen.append(backbone) or {})
    monkeypatch.setattr("tdmvid.cli.shapes._report", lambda *given: None)
    place = tmp_path if option == "--run" else tmp_path / "lora"
    main(["score", "shapes", option, str(place)])
    [lora] = adapters_of(seen[0])
    assert lora.strength == 0.5
    assert any("carried" in key for key, _ in seen[0].network.named_parameters())
