"""Two sharded ranks train an image-to-video model like one process, also when streaming."""

from __future__ import annotations

import json

import pytest
import torch
from families import BUILDERS
from ranks import run_ranks

from tdmvid.config import load_config
from tdmvid.data.video import write_image
from tdmvid.parallel import launch
from tdmvid.train.run import build_run
from tdmvid.train.trainer import _iteration

STEPS = 2
FULL = ("objective.rollout=full",)
STREAM = ("objective.rollout=stream",)


def learn(path: str, changes: tuple[str, ...], backend: str, sequence: int) -> dict[str, list]:
    """Return the trained weights of student and fake after a few iterations, by name, and one value
    of each given image's condition.
    """
    world = launch.start(backend, timeout_minutes=1, sequence=sequence)
    run = build_run(load_config(path, [*changes, f"parallel.sequence={sequence}"]), world)
    for step in range(STEPS):
        assert _iteration(run, step)[0].failed is None
    found = {
        f"{role}/{name}": tensor.cpu().flatten().tolist()
        for role, engine in run.engines.items()
        for name, tensor in engine.weights(averaged=role == "student").items()
    }
    given = run.conds(torch.tensor([0, 1]))["image_latents"]
    launch.finish()
    return found | {"images": given.flatten(1)[:, 0].tolist()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Write a config with two prompts and two different first frames; return its path."""
    folder, builder = tmp_path_factory.mktemp("images"), BUILDERS["CogVideoXImageToVideoPipeline"]
    builder.build("learned").save_pretrained(folder / "base")
    size = builder.SIZE
    for name, level in (("dark", -0.8), ("light", 0.6)):
        write_image(folder / f"{name}.png", torch.full((3, size.height, size.width), level))
    (folder / "items.csv").write_text(
        "image,prompt\ndark.png,a red circle\nlight.png,a blue square\n"
    )
    optimizer = {"lr": 1e-1, "algorithm": "sgd", "clip": 0}
    settings = {
        "model": {"path": str(folder / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "out": str(folder / "out"),
        "prompts": {"path": str(folder / "items.csv"), "cache": str(folder / "cache")},
        "objective": {"cfg": 2.0},
        "steps": STEPS,
        "batch": {"total": 2},
        "lora": {"rank": 2, "alpha": 4},
        "student": optimizer,
        "fake": optimizer,
        "ema": 0.5,
        "parallel": {"zero_stage": 3},
    }
    (folder / "tiny.json").write_text(json.dumps(settings))
    return str(folder / "tiny.json")


@pytest.mark.slow
@pytest.mark.parametrize("sequence, changes", [(1, FULL), (2, STREAM)], ids=["data", "sequence"])
def test_two_sharded_ranks_are_one_process(config, sequence, changes):
    [expected] = run_ranks(1, learn, config, changes, "none", 1)
    moved = {key.partition("/")[0] for key, x in expected.items() if "lora_B" in key and any(x)}
    assert moved == {"student", "fake"}
    assert expected["images"][0] != expected["images"][1]
    for found in run_ranks(2, learn, config, changes, "deepspeed", sequence):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                torch.tensor(found[key]), torch.tensor(value), rtol=1e-3, atol=1e-6
            )
