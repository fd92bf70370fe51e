"""A run that does not fit is rejected with a remedy that was itself planned and fits."""

from dataclasses import replace

import pytest
from refusals import refused

from tdmvid.config import share_batch
from tdmvid.plan.make import make_plan
from tdmvid.plan.remedies import _changed, check_fit
from tdmvid.plan.units import GIB


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_a_remedy_that_fits(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "batch.micro=64"))
    checkpointed = planned(
        tiny_run(tmp_path, "batch.micro=64", "parallel.gradient_checkpointing=true")
    )
    assert checkpointed.total() < made.total()
    limit = (checkpointed.total() + made.total()) / 2 / GIB
    with refused("GiB", "parallel.gradient_checkpointing=true"):
        check_fit(made, limit)
    check_fit(checkpointed, limit)
    with refused("GiB", "loading the base", "no setting"):
        check_fit(made, 1e-9)


def test_a_base_that_fits_in_bfloat16_alone_is_told_so(tiny_run, tmp_path, planned, monkeypatch):
    monkeypatch.setattr("tdmvid.plan.remedies._remedies", lambda plan: [])
    made, half = (
        planned(tiny_run(tmp_path, f"model.dtype={dtype}")) for dtype in ("float32", "bfloat16")
    )
    limit = (made.total() + half.total()) / 2 / GIB
    with refused("GiB", "model.dtype=bfloat16"):
        check_fit(made, limit)
    check_fit(half, limit)


@pytest.mark.slow
def test_a_text_encoder_that_does_not_fit_works_ahead_of_the_run(tiny_run, tmp_path, planned):
    made = planned(tiny_run(tmp_path, "model.dtype=bfloat16"))
    made = replace(made, pipeline=replace(made.pipeline, text=10 * GIB))
    rest = max(size for moment, size in made.moments().items() if "embedding" not in moment) / GIB
    with refused("GiB", "tdmvid embed", "CUDA_VISIBLE_DEVICES=''"):
        check_fit(made, rest * 1.01)
    with refused("GiB") as caught:
        check_fit(made, rest * 1e-6)
    assert "tdmvid embed" not in str(caught.value)


def test_less_is_generated_where_no_setting_helps_and_that_was_planned(tiny_run, tmp_path, planned):
    from tdmvid.plan.remedies import Remedy, _smaller

    made = planned(tiny_run(tmp_path, "batch.micro=64"))
    found = next(_smaller(Remedy({}, 1, made)))
    assert str(found) == "batch.micro=32 and batch.accumulation=2"
    assert found.plan.total() < made.total()
    for each in _smaller(Remedy({}, 1, made)):
        assert each.plan.config.batch.micro * each.plan.config.batch.accumulation >= 64
        assert each.plan.config.video.frames > 1, "a remedy does not turn videos into images"


@pytest.mark.slow
def test_a_run_that_trains_but_has_no_room_for_the_rest_is_told_where_to_export(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("tdmvid.plan.counts._autoencoder", lambda *_: (0, GIB))
    made = make_plan(tiny_run(tmp_path))
    assert made.narrowest != "training"
    with refused("checkpoint", "tdmvid export"):
        check_fit(made, 0.5)
    with refused("GiB") as caught:
        check_fit(made, 1e-9)
    assert "tdmvid export" not in str(caught.value)


@pytest.mark.slow
def test_a_remedy_that_takes_more_ranks_says_so(tiny_run, tmp_path, monkeypatch):
    """Unneeded changes are dropped, but not the number of ranks, because sharding over them is part
    of what helps.
    """
    monkeypatch.setattr("tdmvid.plan.counts._autoencoder", lambda *_: (0, 1000))
    settings = (
        "training=full",
        "log.sample_count=1",
        "parallel.gradient_checkpointing=true",
        "video.height=96",  # large enough that sequence parallelism saves more than it exchanges
        "video.width=96",
    )
    alone = make_plan(tiny_run(tmp_path, *settings, "parallel.offload=all"))
    shared = make_plan(
        tiny_run(tmp_path, *settings, "parallel.offload=all", "parallel.sequence=2"), ranks=2
    )
    assert shared.total() < alone.total()
    with refused("parallel.sequence=2", "2 ranks"):
        check_fit(
            make_plan(tiny_run(tmp_path, *settings)), (shared.total() + alone.total()) / 2 / GIB
        )


def test_a_remedy_that_the_run_cannot_have_is_passed_over(tiny_run, tmp_path, planned):
    made = planned(
        tiny_run(
            tmp_path, "objective.kind=fisher", "objective.distance=huber", "parallel.zero_stage=2"
        ),
        ranks=8,
    )
    with refused("GiB", "no setting"):  # neither ZeRO-3 nor sequence parallelism is supported
        check_fit(made, 1e-9)


def test_what_needs_a_launcher_is_refused_as_it_would_be_there(tiny_run, tmp_path, planned):
    offload = "parallel.offload=all"
    for change in ("parallel.compile=true", "objective.kind=fisher"):
        with refused("zero_stage"):
            planned(tiny_run(tmp_path, offload, change))
    checkpointed = "parallel.gradient_checkpointing=true"
    made, fits = (
        planned(tiny_run(tmp_path, checkpointed, "parallel.compile=true")),
        planned(tiny_run(tmp_path, checkpointed, offload)),
    )
    with refused("GiB", "parallel.compile=false", "parallel.offload=all"):
        check_fit(made, fits.total() / GIB)


def test_kept_attention_is_given_up_first(tiny_run, tmp_path, planned):
    settings = ("batch.micro=512", "parallel.gradient_checkpointing=true")
    plain, kept = (
        planned(tiny_run(tmp_path, *settings)),
        planned(tiny_run(tmp_path, *settings, "parallel.keep_attention=true")),
    )
    assert plain.total() < kept.total()
    with refused("GiB", "parallel.keep_attention=false"):
        check_fit(kept, (plain.total() + kept.total()) / 2 / GIB)


def test_a_remedy_shares_the_total_out_anew(tiny_run, tmp_path):
    """With two ranks per video, two ranks are one data-parallel rank."""
    on_two = share_batch(tiny_run(tmp_path, "batch.total=8"), 2)
    together = share_batch(_changed(on_two, {"sequence": 2}), 1)
    assert (on_two.batch.accumulation, together.batch.accumulation) == (4, 8)
    fixed = tiny_run(tmp_path, "batch.accumulation=4")
    assert _changed(fixed, {"sequence": 2}).batch == fixed.batch
