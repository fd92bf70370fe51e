"""The plan counts what DeepSpeed saves and keeps."""

import gc

import pytest
import torch
from ranks import run_ranks

from tdmvid.plan.counts import Weights
from tdmvid.plan.deepspeed_state import SAVED, held

SIDE = 256


def measure(stage: int) -> tuple[int, int]:
    """Return the bytes of a checkpoint, and of the engine's float32 values after an iteration."""
    from tdmvid.config import OptimConfig
    from tdmvid.parallel import launch
    from tdmvid.parallel.deepspeed_engine import DeepSpeedEngine

    launch.start("deepspeed", timeout_minutes=0.5)
    module = torch.nn.Linear(SIDE, SIDE, bias=False)
    engine = DeepSpeedEngine(
        module, OptimConfig(lr=0.1), total_steps=2, micro_batch=1, zero_stage=stage
    )
    engine.backward(engine(torch.ones(1, SIDE)).square().mean())
    assert engine.step().applied
    gc.collect()
    kept = {}
    for x in gc.get_objects():
        if isinstance(x, torch.Tensor) and x.dtype == torch.float32 and x.device.type == "cpu":
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    saved = sum(len(data) for data in engine.snapshot().values())
    launch.finish()
    return saved, sum(size for size in kept.values() if size >= 4 * SIDE * SIDE)


@pytest.mark.parametrize(
    "stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))]
)
def test_deepspeed_saves_and_keeps_what_is_planned(stage):
    [(saved, kept)] = run_ranks(1, measure, stage)
    values = SIDE * SIDE
    assert saved == pytest.approx(4 * SAVED[stage] * values, rel=0.05)
    weights = Weights(base=0, base_bytes=0, trainable=values, generators=("student",))
    more = held(weights, stage=stage, shards=1, offload="none")
    usual = 4 * (4 + (stage == 3)) * values  # weights, gradients, two moments; gathered weights
    assert usual + more - 4 * 2 * values <= kept <= usual + more
