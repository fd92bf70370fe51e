"""Tracing a few equal blocks gives the exact cost of all blocks, in bytes and operations."""

import json
import shutil
from pathlib import Path

import pytest

from tdmvid.backbones.registry import ARCHITECTURES, find_family
from tdmvid.config import load_config
from tdmvid.plan import cost
from tdmvid.plan.counts import count_calls, outline_networks
from tdmvid.plan.footprint import Footprint

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHORT = {
    "cogvideox2b_4nfe": {"num_layers": 4},
    "wan1.3b_4nfe": {"num_layers": 4},
    "sd35_4nfe": {"num_layers": 10, "dual_attention_layers": [0, 1, 2, 3]},
    "pixart512_4nfe": {"num_layers": 4},
    "sdxl_4nfe_512": {"transformer_layers_per_block": [1, 1, 4]},
}


@pytest.fixture
def short(tmp_path):
    """`short(stem, *changes)`: a shipped config whose teacher has fewer blocks."""

    def config(stem, *changes):
        path = load_config(CONFIGS / f"{stem}.json").model.path
        folder = tmp_path / "teacher"
        shutil.copytree(ARCHITECTURES / path.replace("/", "--"), folder)
        network = "unet" if (folder / "unet").is_dir() else "transformer"
        file = folder / network / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | SHORT[stem]))
        own = (f"model.path={folder}", "model.revision=null")
        return load_config(CONFIGS / f"{stem}.json", [*own, *changes])

    return config


def calls(config, few, monkeypatch):
    monkeypatch.setattr(cost, "FEW", few)
    folder, family = find_family(config.model, weights=False)
    return count_calls(outline_networks(config, folder, family))


def read_by_a_plan(counted):
    """Return everything a plan reads from the counts. Of a footprint's `before`, `forward` and
    `backward` a plan reads only the maximum; each alone may grow differently in the first blocks.
    """
    traces = {name: trace for name, trace in vars(counted).items() if isinstance(trace, cost.Trace)}
    found = vars(counted) | {name: dict(vars(trace)) for name, trace in traces.items()}
    for name in traces:
        for part, value in found[name].items():
            if isinstance(value, Footprint):
                found[name][part] = (value.kept, value.early, value.end)
    return found


@pytest.mark.parametrize(
    "stem, changes",
    [
        ("cogvideox2b_4nfe", ("training=full",)),
        pytest.param("cogvideox2b_4nfe", ("parallel.sequence=2",), marks=pytest.mark.slow),
        pytest.param(
            "cogvideox2b_4nfe", ("objective.kind=gan", "real.path=."), marks=pytest.mark.slow
        ),
        pytest.param("wan1.3b_4nfe", ("parallel.sequence=2",), marks=pytest.mark.slow),
        pytest.param("sd35_4nfe", (), marks=pytest.mark.slow),
        pytest.param("pixart512_4nfe", (), marks=pytest.mark.slow),
        pytest.param("sdxl_4nfe_512", (), marks=pytest.mark.slow),
    ],
)
def test_a_few_equal_blocks_are_enough(short, stem, changes, monkeypatch):
    config = short(stem, *changes)
    every = calls(config, 1000, monkeypatch)
    assert read_by_a_plan(calls(config, 2, monkeypatch)) == read_by_a_plan(every)
    assert every.network.forward_flops > every.network.attention_flops > 0
