"""Methods with a gradient in the input of a network, on two ranks: DeepSpeed must not treat the
call as a training step.
"""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from families import BUILDERS
from ranks import run_ranks
from safetensors.torch import load_file

from tdmvid.config import load_config
from tdmvid.data.video import write_video
from tdmvid.parallel.deepspeed_engine import has_graph
from tdmvid.train.trainer import train

PLAIN = {"algorithm": "sgd", "clip": 0.0, "lr": 0.05}
"""Plain gradient descent."""
KINDS = {
    "gan": ("objective.weight=5", f"discriminator={json.dumps(PLAIN)}"),
    "fisher": ("parallel.gradient_checkpointing=true", "real.path="),
}


def run(settings, out, *changes) -> None:
    """Train without the steps after the last iteration."""
    train(load_config(settings, [f"out={out}", *changes]), at_end=lambda run: None)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Write the config of a run with three steps of plain gradient descent, which shows a wrong
    factor of the gradient.
    """
    folder = tmp_path_factory.mktemp("through")
    torch.manual_seed(0)
    BUILDERS["CogVideoXPipeline"].build("sincos").save_pretrained(folder / "model")
    for number in range(5):
        write_video(folder / "real" / f"{number}.mp4", torch.rand(3, 9, 32, 32) * 2 - 1, fps=8)
    (folder / "prompts.txt").write_text("a red circle moves left\na blue square moves right\n")
    (folder / "run.json").write_text(
        json.dumps(
            {
                "model": {"path": str(folder / "model")},
                "video": {"frames": 9, "height": 32, "width": 32},
                "steps": 3,
                "prompts": {"path": str(folder / "prompts.txt"), "cache": str(folder / "cache")},
                "lora": {"rank": 2, "alpha": 4},
                "real": {"path": str(folder / "real"), "cache": str(folder / "latents")},
                "objective": {"cfg": 2.0, "rollout": "full"},
                "student": PLAIN,
                "fake": PLAIN,
                "batch": {"micro": 2, "accumulation": 2},
                "log": {"checkpoint_every": 3, "sample_every": 0, "teacher_steps": 2},
            }
        )
    )
    return folder / "run.json"


@pytest.fixture(scope="module", params=KINDS)
def reference(request, settings, tmp_path_factory):
    """Return the changes of a kind, and the folder of its run in one process."""
    changes, out = (
        (
            f"objective.kind={request.param}",
            *KINDS[request.param],
        ),
        tmp_path_factory.mktemp(request.param),
    )
    run(settings, out, *changes)
    return changes, out


def weights(folder):
    found = {
        path.parent.name: load_file(path)
        for path in sorted((folder / "checkpoints/step_000003").glob("*/weights.safetensors"))
    }
    return {
        f"{role}/{name}": tensor
        for role, tensors in found.items()
        for name, tensor in tensors.items()
    }


def test_a_gradient_is_found_in_a_list_of_samples_too():
    """Z-Image takes the samples of a batch as a list."""
    plain, needed = torch.zeros(2), torch.zeros(2, requires_grad=True)
    assert has_graph(((plain, needed), {})) and has_graph(((), {"x": [plain, needed]}))
    assert not has_graph(((plain, 3), {"x": [plain], "t": None}))


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.slow
def test_two_ranks_are_one_process_with_the_same_micro_batches(
    settings, reference, tmp_path, stage
):
    changes, one = reference
    run_ranks(
        2,
        partial(
            run,
            settings,
            tmp_path,
            *changes,
            "batch.accumulation=1",
            f"parallel.zero_stage={stage}",
        ),
    )
    expected, found = weights(one), weights(tmp_path)
    moved = max(  # lora_B starts at zero
        float(tensor.abs().max()) for name, tensor in expected.items() if "lora_B" in name
    )
    assert expected.keys() == found.keys() and moved > 1e-4
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name],
            tensor,
            atol=1e-3 * moved,
            rtol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.slow
def test_a_network_that_takes_its_samples_as_a_list_learns_the_same_under_a_launcher(
    settings, tmp_path
):
    builder = BUILDERS["ZImagePipeline"]
    torch.manual_seed(0)
    builder.build("base").save_pretrained(tmp_path / "model")
    changes = (
        "objective.kind=fisher",
        f"model.path={tmp_path / 'model'}",
        f"prompts.cache={tmp_path / 'cache'}",
        "real.path=",
        "log.teacher_shift=3",
        "grid.kind=shifted",
        "grid.shift=3",
        *(f"video.{name}={getattr(builder.SIZE, name)}" for name in ("frames", "height", "width")),
    )
    run(settings, tmp_path / "one", *changes)
    more = ("batch.accumulation=1", "parallel.zero_stage=2")
    run_ranks(2, partial(run, settings, tmp_path / "two", *changes, *more))
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    moved = max(float(x.abs().max()) for name, x in expected.items() if "lora_B" in name)
    assert expected.keys() == found.keys() and moved > 1e-5
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-3 * moved, rtol=1e-4)
