"""The layout search: its results fit, and none that it leaves out is faster."""

import math
import re
from dataclasses import replace

import pytest
from refusals import refused

from tdmvid.cli import train as command
from tdmvid.config import BatchConfig, RewardConfig, load_config
from tdmvid.plan import layouts as search
from tdmvid.plan import make
from tdmvid.plan.describe_layouts import describe_layouts, layout_reasons
from tdmvid.plan.devices import DEVICES
from tdmvid.plan.footprint import Footprint
from tdmvid.plan.layouts import find_layouts, plan_layout
from tdmvid.plan.make import make_plan
from tdmvid.plan.price import Terms, price_run
from tdmvid.plan.units import GIB

TERMS = Terms(device=DEVICES["h100"])
TOTAL = 32


def footprint(kept, *, working):
    """A footprint whose graph keeps `kept` GiB and whose backward pass works with `working` GiB."""
    peak = int((kept + working) * GIB)
    parts = dict.fromkeys(("before", "forward", "backward", "end"), peak)
    return Footprint(kept=int(kept * GIB), **parts)


@pytest.fixture(scope="module")
def traces(traced):
    """Plans by (sequence, micro-batch) for the searches of this file: the tiny run with the compute
    of billions of parameters, so that nothing is traced.
    """
    run = traced.config
    run = replace(run, model=replace(run.model, dtype="bfloat16"))
    plans = {}
    for sequence, micro in ((1, 1), (1, 2), (1, 4), (2, 1)):
        parallel = replace(run.parallel, sequence=sequence, zero_stage=2)
        call = replace(
            traced.calls.network,
            forward_flops=3e14 * micro / sequence,
            backward_flops=6e14 * micro / sequence,
            plain=footprint(40 * micro / sequence, working=0),
            checkpointed=footprint(2 * micro / sequence, working=1.5 * micro / sequence),
            exchanged=(sequence - 1) * GIB,
        )
        plans[sequence, micro] = replace(
            traced,
            config=replace(run, parallel=parallel, batch=replace(run.batch, micro=micro)),
            ranks=sequence,
            calls=replace(traced.calls, network=call),
            weights=replace(traced.weights, base=5 * 10**9, base_bytes=10**10),
        )
    return plans


@pytest.fixture
def found(traces):
    """`found(ranks, limit, count)`: layouts of a run of TOTAL videos, found without tracing. `run`
    changes other settings.
    """
    config = traces[1, 1].config

    def find(ranks=8, limit=70.0, count=3, total=TOTAL, gpus=2, run=config):
        run = replace(run, batch=replace(run.batch, total=total))
        return find_layouts(
            run,
            ranks=ranks,
            terms=replace(TERMS, gpus=gpus),
            limit=limit * GIB,
            count=count,
            traces=dict(traces),
        )

    return find


@pytest.mark.parametrize("rollout, each", [("stop", 2.0), ("full", 2.0), ("stream", 0.5)])
def test_every_rollout_of_a_micro_batch_swaps_the_experts_again(traces, rollout, each):
    config = replace(traces[1, 1].config, batch=BatchConfig(micro=2, total=TOTAL))
    config = replace(config, objective=replace(config.objective, rollout=rollout))
    held = {place: replace(plan, swaps=each) for place, plan in traces.items()}
    plan = plan_layout(config, ranks=4, traces=held)
    assert plan.config.batch.accumulation == 4
    assert plan.swaps == (each if rollout == "stream" else 4 * each)


def test_the_quickest_come_first_and_fit_and_keep_the_global_batch(found):
    layouts = found(count=100)
    times = [layout.price.iteration for layout in layouts]
    assert times == sorted(times) and len(layouts) > 3
    for layout in layouts:
        batch, parallel = layout.plan.config.batch, layout.plan.config.parallel
        assert layout.plan.total() <= 70 * GIB
        assert batch.micro * batch.accumulation * (8 // parallel.sequence) == TOTAL
    assert found() == layouts[:3]


def test_less_memory_never_makes_a_run_quicker(found):
    quickest = [found(limit=limit)[0].price.iteration for limit in (200, 100, 40, 20)]
    assert quickest == sorted(quickest) and quickest[0] < quickest[-1]


def test_devices_share_videos_where_there_are_fewer_videos_than_devices(found):
    assert {layout.plan.config.parallel.sequence for layout in found(ranks=16, total=8)} == {2}
    with refused("batch.total=8", "32"):
        found(ranks=32, total=8)


def test_what_fits_nowhere_is_refused_with_what_is_least(found):
    with refused("0.5 GiB", "8 x H100 SXM"):
        found(limit=0.5)


@pytest.mark.parametrize(
    "ranks, changes, facts",
    [
        (4, ("batch.total=6",), ("batch.total=6", "batch.micro=1", 4)),
        (4, ("batch.total=6", "batch.micro=16"), ("batch.total=6", "batch.total=4 or 8")),
        (4, ("batch.total=6", "parallel.sequence=2"), ("parallel.sequence=2", "fisher")),
        (4, ("batch.total=6", "parallel.sequence=3"), ("parallel.sequence=3", 4)),
        (16, ("parallel.sequence=3",), ("parallel.sequence=3", 16)),
    ],
)
def test_a_refused_search_names_a_setting_of_the_config(tiny_run, tmp_path, ranks, changes, facts):
    """Only devices that share videos could split 6 over 4, which this objective does not allow."""
    run = tiny_run(tmp_path, "objective.kind=fisher", *changes)
    with refused(*facts):
        find_layouts(run, ranks=ranks, terms=replace(TERMS, gpus=4), limit=math.inf, traces={})


def test_one_device_may_round_its_base(traces):
    config = replace(traces[1, 1].config, batch=replace(traces[1, 1].config.batch, total=1))
    layouts = find_layouts(
        config, ranks=1, terms=TERMS, limit=500 * GIB, count=99, traces=dict(traces)
    )
    assert {layout.plan.config.model.quantize for layout in layouts} == {"none", "int8"}


def test_a_search_traces_each_micro_batch_once_for_all_layouts(found, traces, monkeypatch):
    traced = []
    monkeypatch.setattr(
        search, "make_plan", lambda config, **_: traced.append(config) or traces[1, 1]
    )
    find_layouts(
        replace(traces[1, 1].config, batch=replace(traces[1, 1].config.batch, total=TOTAL)),
        ranks=8,
        terms=replace(TERMS, gpus=1),
        limit=1000 * GIB,
    )
    assert sorted(config.batch.micro for config in traced) == [1, 2, 4]


def test_a_layout_is_planned_and_priced_as_its_settings_are(tiny_run, tmp_path):
    """The printed `--set` options give the same plan."""
    terms = replace(TERMS, gpus=2)
    run = tiny_run(tmp_path, "batch.total=2", "model.dtype=bfloat16")
    (layout,) = find_layouts(run, ranks=2, terms=terms, limit=GIB, count=1)
    text = describe_layouts([layout], limit=GIB, terms=terms)
    words = re.findall(r"--set (\S+)", text)
    again = make_plan(tiny_run(tmp_path, "model.dtype=bfloat16", *words), ranks=2)
    assert again.total() == layout.plan.total()
    assert price_run(again, terms) == layout.price


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(
    "changes",
    [
        ("batch.accumulation=4",),
        ("batch.micro=2", "batch.accumulation=2"),
        ("batch.total=16", "batch.accumulation=4"),
        ("parallel.offload=optimizer", "parallel.zero_stage=1", "batch.accumulation=8"),
        ("parallel.keep_attention=true", "parallel.gradient_checkpointing=true"),
        ("parallel.compile=true", "parallel.zero_stage=2"),
        ("model.attention=xformers", "objective.kind=fisher"),
        ("model.quantize=int8", "batch.total=12"),
    ],
)
def test_a_run_accepts_the_settings_of_every_layout(
    tiny_run, tmp_path, traces, monkeypatch, changes, ranks
):
    known = traces[1, 1]
    counted = known.tokens, known.weights, known.calls, known.pipeline
    monkeypatch.setattr(make, "_counted", lambda *_: counted)
    run = tiny_run(tmp_path, *changes)
    layouts = find_layouts(run, ranks=ranks, terms=TERMS, limit=math.inf, count=99, traces={})
    assert len(layouts) > 1
    for layout in layouts:
        text = describe_layouts([layout], limit=math.inf, terms=TERMS)
        words = re.findall(r"--set (\S+)", text)
        again = make_plan(tiny_run(tmp_path, *changes, *words), ranks=ranks)
        assert again.config == layout.plan.config


def test_a_backend_for_one_rank_is_refused_on_several(traces):
    run = traces[1, 1].config
    run = replace(run, parallel=replace(run.parallel, backend="none"))
    with refused("parallel.backend='none'", 2):
        find_layouts(run, ranks=2, terms=TERMS, limit=math.inf, traces=dict(traces))


def test_every_layout_has_a_reason(found):
    for limit in (200, 40):
        layouts = found(limit=limit)
        text = describe_layouts(layouts, limit=limit * GIB, terms=TERMS)
        assert text.count("GPU-hours") == len(layouts) == 3
        assert all(re.search(r"\n +- ", part) for part in re.split(r"\n\d\. ", text)[1:])
    assert "recomputed" in text


@pytest.mark.parametrize(
    "section, changes",
    [("parallel", {"compile": True}), ("model", {"attention": "xformers"}), ("model", {})],
)
def test_reasons_name_the_memory_of_kept_attention_only_where_it_is_allowed(
    found, traces, section, changes
):
    run = traces[1, 1].config
    run = replace(run, **{section: replace(getattr(run, section), **changes)})
    layouts = found(limit=21, run=run)
    text = describe_layouts(layouts, limit=0.0, terms=TERMS)
    assert "recomputed" in text and ("with parallel.keep_attention" in text) == (not changes)


@pytest.mark.parametrize(
    "changes, twice",
    [
        ({}, True),
        ({"updates": "joint"}, False),
        ({"rollout": "stream"}, True),
        ({"rollout": "stream", "rewards": (RewardConfig(function="motion"),)}, False),
    ],
)
def test_reasons_say_that_the_graded_call_is_made_twice_only_if_it_is(traces, changes, twice):
    settings = dict(changes)
    rewards, plan = settings.pop("rewards", ()), traces[1, 2]
    objective = replace(plan.config.objective, **settings)
    for accumulation in (1, 2):
        batch = replace(plan.config.batch, accumulation=accumulation)
        config = replace(plan.config, objective=objective, rewards=rewards, batch=batch)
        reasons = list(layout_reasons(replace(plan, config=config), 70 * GIB))
        assert any("graded call" in reason for reason in reasons) == twice


def test_the_command_prints_layouts_and_ends_with_the_price_of_the_first(tiny_json, capsys):
    from tdmvid.cli.main import main

    main(["plan", "--config", str(tiny_json), "--gpus", "2", "--device", "rtx5090"])
    lines = capsys.readouterr().out.splitlines()
    first = next(line for line in lines if line.startswith("1. "))
    assert lines[0].startswith("fastest layouts on 2 x RTX 5090")
    assert lines[-1].startswith("cost ") and lines[-1].split()[1] == first.split()[1]


def test_contradicting_numbers_of_devices_are_refused(tiny_run, tmp_path):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_plan(parser)
    config = load_config("shapes_4nfe")
    for words, fact in (
        (["--ranks", "3", "--nodes", "2"], "--ranks=3"),
        (["--nodes", "2", "--seconds", "1"], "--seconds=1"),
    ):
        with refused(fact):
            command.print_plan(config, parser.parse_args(words))
