"""Interruptions of a DeepSpeed run: failing ranks, resuming on other ranks, overflowing loss
scales.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from deepspeed_runs import (
    ADAMW,
    Case,
    assert_close,
    assert_same_run,
    part,
    run,
)
from ranks import run_ranks


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.slow
def test_one_rank_that_fails_makes_all_ranks_skip_and_forget(model, reference, stage):
    """Rank 1 skips a student's step, then has a NaN: nothing changes, and training continues as if
    this had not happened.
    """
    trouble = {"optim": ADAMW, "steps": 4, "skip": (1, 1), "poison": (2, 1)}
    for result in run_ranks(2, run, Case(model, zero_stage=stage, **trouble)):
        assert result["failed"] == [None, "student", "fake", None]
        assert_same_run(result, reference(**trouble))
        healthy, skipped, poisoned, _ = result["weights"]
        assert_close(part(skipped, "student"), part(healthy, "student"), 0)
        assert_close(poisoned, skipped, 0)


@pytest.mark.parametrize(
    "change", [{"threshold": 100}, {"zero_stage": 2}], ids=["zero-3", "zero-2"]
)
@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(model, tmp_path, change):
    case = Case(model, optim=ADAMW, steps=4, **change)
    whole = run_ranks(2, run, replace(case, save=str(tmp_path)))
    resumed = run_ranks(2, run, replace(case, load=str(tmp_path)))
    for rank in (0, 1):
        assert (
            resumed[rank]["log"] == whole[rank]["log"][2:]
            and resumed[rank]["updates"] == whole[rank]["updates"]
        )
        assert_close(resumed[rank]["weights"][-1], whole[rank]["weights"][-1], 0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.slow
def test_a_run_goes_on_with_fewer_ranks_and_then_with_more(model, reference, tmp_path, stage):
    """With 2, 1 and 2 ranks, each part continues the last with the results of the run in one
    process.
    """
    case, whole = (
        Case(model, optim=ADAMW, steps=6, zero_stage=stage),
        reference(optim=ADAMW, steps=6),
    )
    parts = [(2, 0, 2), (1, 2, 4), (2, 4, 6)]
    for ranks, first, last in parts:
        here = replace(
            case,
            load=str(tmp_path / str(first)) if first else None,
            save=str(tmp_path / str(last)),
            span=(first, last),
        )
        for result in run_ranks(ranks, run, here):
            assert_same_run(
                result,
                {
                    name: value[first:last] if isinstance(value, list) else value
                    for name, value in whole.items()
                }
                | {"updates": result["updates"]},
            )


@pytest.mark.parametrize("stage, losses, weights", [(2, 1e-5, 1e-5), (3, 5e-2, 2e-3)])
@pytest.mark.slow
def test_bfloat16_weights_under_float32_adapters_train_as_in_one_process(
    model, reference, stage, losses, weights
):
    """ZeRO-3 rounds once more in every linear layer, because it adds the bias to the rounded
    product.
    """
    for result in run_ranks(2, run, Case(model, dtype="bfloat16", zero_stage=stage)):
        assert_same_run(result, reference(dtype="bfloat16"), losses=losses, weights=weights)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.slow
def test_float16_arithmetic_trains_as_in_one_process(model, reference, stage):
    for result in run_ranks(2, run, Case(model, dtype="float16", zero_stage=stage)):
        assert_same_run(result, reference(dtype="float16"), losses=5e-2, weights=2e-3)


@pytest.mark.parametrize(
    "backend, stage", [("torch", 0), ("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3)]
)
@pytest.mark.slow
def test_a_loss_scale_that_overflows_is_halved_until_it_fits_and_the_run_goes_on(
    model, backend, stage
):
    ranks = 1 if backend == "torch" else 2
    for result in run_ranks(
        ranks,
        run,
        Case(
            model, backend, dtype="float16", zero_stage=stage, scale=2.0**36, steps=30, optim=ADAMW
        ),
    ):
        assert result["failed"] == [None] * 30, "an overflow of the scale is no failure"
        for role in ("student", "fake"):
            finite = [np.isfinite(row[f"grad_norm/{role}"]) for row in result["log"]]
            assert not any(finite[:3]) and np.mean(finite[-10:]) > 0.7
            assert result["updates"][role] == sum(finite)
