"""Two ranks train both experts like one process: sharded, with shared tokens, and streaming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import BUILDERS
from lora_makers import write_diffusers
from ranks import run_ranks

from tdmvid.backbones.experts import Split
from tdmvid.config import load_config
from tdmvid.parallel import launch
from tdmvid.train.run import build_run
from tdmvid.train.trainer import _iteration

STEPS = 5


def learn(path: str, changes: tuple[str, ...], backend: str, sequence: int) -> dict[str, list]:
    """Return the trained weights of all experts and roles after a few iterations, by name."""
    world = launch.start(backend, timeout_minutes=1, sequence=sequence)
    run = build_run(load_config(path, [*changes, f"parallel.sequence={sequence}"]), world)
    for step in range(STEPS):
        assert _iteration(run, step)[0].failed is None
    found = {
        f"{role}/{name}": tensor.cpu().flatten().tolist()
        for role, engine in run.engines.items()
        for name, tensor in engine.weights(averaged=role == "student").items()
    }
    launch.finish()
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder, builder = tmp_path_factory.mktemp("experts"), BUILDERS["WanPipeline"]
    torch.manual_seed(0)
    pipeline = builder.build("experts")
    pipeline.save_pretrained(folder / "base")
    write_diffusers(pipeline.transformer, folder / "high")
    write_diffusers(pipeline.transformer_2, folder / "low", r=2, target_modules=["to_v"])
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    optimizer = {"lr": 1e-2, "algorithm": "sgd", "clip": 0}
    settings = {
        "model": {"path": str(folder / "base")},
        "video": {"frames": 9, "height": builder.SIZE.height, "width": builder.SIZE.width},
        "out": str(folder / "out"),
        "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
        "grid": {"kind": "shifted", "shift": 2.0},
        "objective": {"cfg": 2.0, "cfg_2": 3.0},
        "steps": STEPS,
        "batch": {"total": 2},
        "lora": {"rank": 2, "alpha": 4},
        "student": optimizer,
        "fake": optimizer,
        "ema": 0.5,
        "parallel": {"zero_stage": 3},
        "log": {"sample_prompts": ["a circle"]},
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return str(folder / "tiny.json")


FULL = ("objective.rollout=full",)
STREAM = ("objective.rollout=stream", "objective.stagger=none")


@pytest.mark.slow
def test_two_sharded_ranks_with_a_user_s_pair_of_loras_are_one_process(config):
    folder = Path(config).parent
    pair = {"path": str(folder / "high"), "path_2": str(folder / "low"), "scale": 0.05}
    changes = (*FULL, f"model.adapters={json.dumps([pair])}")
    [expected] = run_ranks(1, learn, config, changes, "none", 1)
    for found in run_ranks(2, learn, config, changes, "deepspeed", 1):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.tensor(found[key]), torch.tensor(value), rtol=1e-3, atol=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize("sequence, changes", [(1, FULL), (2, STREAM)], ids=["data", "sequence"])
def test_two_sharded_ranks_are_one_process(config, sequence, changes):
    [expected] = run_ranks(1, learn, config, changes, "none", 1)
    moved = {key.partition(".")[0] for key, x in expected.items() if "lora_B" in key and any(x)}
    assert moved == {f"{role}/{name}" for role in ("student", "fake") for name in Split.names}
    for found in run_ranks(2, learn, config, changes, "deepspeed", sequence):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.tensor(found[key]), torch.tensor(value), rtol=1e-3, atol=1e-6
            )
