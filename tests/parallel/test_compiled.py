"""Compiled blocks on two ranks learn the same as one process without compilation, in whole graphs,
and nothing is compiled twice.
"""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from families import BUILDERS
from ranks import run_ranks
from torch._dynamo.utils import counters

from tdmvid.config import load_config
from tdmvid.parallel import launch
from tdmvid.roles import build
from tdmvid.train import run as runs
from tdmvid.train import trainer


def run(settings, backend, *changes) -> dict:
    """Run three iterations; return the final weights and the number of graphs after each."""
    torch._dynamo.config.fail_on_recompile_limit_hit = (
        True  # otherwise a block would fall back to eager mode
    )
    build.compile_blocks = partial(build.compile_blocks, backend=backend)
    config, graphs = load_config(settings, list(changes)), []
    world = launch.start(
        config.parallel.backend, timeout_minutes=5, sequence=config.parallel.sequence
    )
    run = runs.build_run(config, world)
    for step in range(3):
        assert trainer._iteration(run, step)[0].failed is None
        graphs.append(counters["stats"]["unique_graphs"])
    weights = {
        f"{role}/{name}": tensor.tolist()
        for role, engine in run.engines.items()
        for name, tensor in engine.weights(averaged=False).items()
    }
    launch.finish()
    return {
        "weights": weights,
        "graphs": graphs,
        "breaks": dict(counters["graph_break"]),
        "frames": dict(counters["frames"]),
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Return `settings(pipeline)`, which writes the config of a run with plain gradient descent. It
    shows a wrong factor.
    """

    def write(pipeline: str) -> str:
        folder = tmp_path_factory.mktemp("compiled")
        torch.manual_seed(0)
        BUILDERS[pipeline].build(BUILDERS[pipeline].VARIANTS[0]).save_pretrained(folder / "model")
        (folder / "prompts.txt").write_text("a red circle moves left\na blue square moves right\n")
        optim = {"algorithm": "sgd", "clip": 0.0, "lr": 0.05}
        (folder / "run.json").write_text(
            json.dumps(
                {
                    "model": {"path": str(folder / "model")},
                    "video": {"frames": 9, "height": 32, "width": 32},
                    "steps": 3,
                    "prompts": {
                        "path": str(folder / "prompts.txt"),
                        "cache": str(folder / "cache"),
                    },
                    "lora": {"rank": 2, "alpha": 4},
                    "objective": {"cfg": 2.0, "rollout": "full"},
                    "student": optim,
                    "fake": optim,
                    "batch": {"micro": 2, "accumulation": 2},
                    "log": {"sample_every": 0, "teacher_steps": 2},
                }
            )
        )
        return str(folder / "run.json")

    return write


@pytest.fixture(scope="module")
def reference(settings):
    """Return `reference(pipeline, *changes)`, which gives a config file and the result of its run
    in one process without compilation.
    """
    files, runs = {}, {}

    def of(pipeline: str, *changes: str) -> tuple[str, dict]:
        if pipeline not in files:
            files[pipeline] = settings(pipeline)
        if (pipeline, changes) not in runs:
            runs[pipeline, changes] = run_ranks(
                1, run, files[pipeline], "eager", "parallel.backend=none", *changes
            )[0]["weights"]
        return files[pipeline], runs[pipeline, changes]

    return of


def assert_compiled_is_plain(file, expected, *changes, backend="aot_eager", seconds=300):
    for found in run_ranks(
        2,
        run,
        file,
        backend,
        "parallel.compile=true",
        "batch.accumulation=1",
        *changes,
        seconds=seconds,
    ):
        first, *later = found["graphs"]
        assert first > 0 and later == [first, first], "compiled again"
        assert not found["breaks"] and found["frames"]["total"] == found["frames"]["ok"], found[
            "breaks"
        ]
        assert found["weights"].keys() == expected.keys()
        moved = max(  # lora_B starts at zero
            float(torch.tensor(tensor).abs().max())
            for name, tensor in expected.items()
            if "lora_B" in name
        )
        assert moved > 1e-3
        for name, tensor in expected.items():
            torch.testing.assert_close(
                torch.tensor(found["weights"][name]),
                torch.tensor(tensor),
                atol=1e-3 * moved,
                rtol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2]
)
@pytest.mark.slow
def test_compiled_blocks_on_two_ranks_learn_what_one_process_learns(reference, stage):
    assert_compiled_is_plain(*reference("CogVideoXPipeline"), f"parallel.zero_stage={stage}")


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["CogVideoXPipeline", "WanPipeline"])
def test_ranks_that_share_a_video_exchange_its_tokens_inside_the_graphs(reference, pipeline):
    assert_compiled_is_plain(
        *reference(pipeline, "batch.accumulation=1"), "parallel.zero_stage=2", "parallel.sequence=2"
    )


@pytest.mark.slow
def test_the_default_compiler_gives_the_same(reference):
    file, expected = reference("CogVideoXPipeline", "batch.accumulation=1")
    sharing = "parallel.zero_stage=2", "parallel.sequence=2", "parallel.gradient_checkpointing=true"
    assert_compiled_is_plain(file, expected, *sharing, backend="inductor", seconds=580)
