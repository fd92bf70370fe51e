"""Two sharded ranks train models of newer families like one process, also when streaming."""

from __future__ import annotations

import json

import pytest
import torch
from families import BUILDERS
from ranks import run_ranks

from tdmvid.backbones.registry import families
from tdmvid.config import load_config
from tdmvid.data.video import write_image
from tdmvid.parallel import launch
from tdmvid.train.run import build_run
from tdmvid.train.trainer import _iteration

STEPS = 2
FULL = ("objective.rollout=full",)
STREAM = ("objective.rollout=stream",)
COGVIDEOX = ("CogVideoXImageToVideoPipeline", "learned")
OTHERS = (
    ("WanImageToVideoPipeline", "encoder"),
    ("WanImageToVideoPipeline", "first_frame"),
    ("WanImageToVideoPipeline", "experts"),
    ("HunyuanVideo15Pipeline", "base"),
)
CASES = [
    pytest.param(COGVIDEOX, 1, FULL, id="cogvideox-data"),
    pytest.param(COGVIDEOX, 2, STREAM, id="cogvideox-sequence"),
    *(pytest.param(base, 2, STREAM, id=f"{base[0][:3]}-{base[1]}-sequence") for base in OTHERS),
]


def learn(path: str, changes: tuple[str, ...], backend: str, sequence: int) -> dict[str, list]:
    """Return the trained weights of student and fake after a few iterations, by name, and one value
    of each given image's condition.
    """
    world = launch.start(backend, timeout_minutes=1, sequence=sequence)
    run = build_run(load_config(path, [*changes, f"parallel.sequence={sequence}"]), world)
    for step in range(run.config.steps):
        assert _iteration(run, step)[0].failed is None
    found = {
        f"{role}/{name}": tensor.cpu().flatten().tolist()
        for role, engine in run.engines.items()
        for name, tensor in engine.weights(averaged=role == "student").items()
    }
    given = run.conds(torch.tensor([0, 1])).get("image_latents", torch.arange(2.0)[:, None])
    launch.finish()
    return found | {"images": given.flatten(1)[:, 0].tolist()}


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    """Return a function: (family, variant) -> path of a config with two prompts, and two different
    first frames if the family takes them.
    """
    made = {}

    def config(base):
        if base not in made:
            made[base] = write_config(tmp_path_factory.mktemp("run"), *base)
        return made[base]

    return config


def write_config(folder, family, variant):
    """Write a tiny base and the config of a run, and return the config's path."""
    builder = BUILDERS[family]
    torch.manual_seed(0)
    builder.build(variant).save_pretrained(folder / "base")
    size, prompts = builder.SIZE, folder / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    if families()[family].takes_images:
        for name, level in (("dark", -0.8), ("light", 0.6)):
            write_image(folder / f"{name}.png", torch.full((3, size.height, size.width), level))
        prompts = folder / "items.csv"
        prompts.write_text("image,prompt\ndark.png,a red circle\nlight.png,a blue square\n")
    experts = variant == "experts"
    optimizer = {"lr": 1e-2 if experts else 1e-1, "algorithm": "sgd", "clip": 0}
    settings = {
        "model": {"path": str(folder / "base")},
        "video": {"frames": size.frames, "height": size.height, "width": size.width},
        "out": str(folder / "out"),
        "prompts": {"path": str(prompts), "cache": str(folder / "cache")},
        "objective": {"cfg": 2.0, **({"stagger": "none"} if experts else {})},
        "steps": 5 if experts else STEPS,
        "batch": {"total": 2},
        "lora": {"rank": 2, "alpha": 4},
        "student": optimizer,
        "fake": optimizer,
        "ema": 0.5,
        "parallel": {"zero_stage": 3},
    }
    if experts:  # a time of this grid is just below the boundary
        settings["grid"] = {"kind": "shifted", "shift": 2.0}
    (folder / "tiny.json").write_text(json.dumps(settings))
    return str(folder / "tiny.json")


@pytest.mark.slow
@pytest.mark.parametrize("base, sequence, changes", CASES)
def test_two_sharded_ranks_are_one_process(config_of, base, sequence, changes):
    config = config_of(base)
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
