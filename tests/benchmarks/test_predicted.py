"""The page about scaling shows what the plans of a run cost, here of a tiny one."""

from xml.etree import ElementTree

import pytest

from benchmarks.predicted import FIXED, NODE, Scenarios, page, predict, table
from benchmarks.predicted_plot import COLOURS, DASHES, draw
from tdmvid.plan.devices import DEVICES
from tdmvid.plan.duration import predict_iteration
from tdmvid.plan.price import Terms

TERMS = Terms(device=DEVICES["h100"], gpus=NODE)
COUNTS = (1, 8, 128)


@pytest.fixture(scope="module")
def config(tiny_run, tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("predicted"))


@pytest.fixture(scope="module")
def cases(config):
    return predict(config, TERMS, COUNTS)


def test_the_batch_grows_with_the_gpus_or_stays(cases):
    own, grown, fixed = cases.values()
    assert [p.gpus for p in own] == [p.gpus for p in grown] == [p.gpus for p in fixed] == [*COUNTS]
    assert [p.videos for p in own] == [p.videos for p in grown] == [*COUNTS]
    assert [p.videos for p in fixed] == [FIXED] * len(COUNTS)
    assert [p.plan.config.parallel.sequence for p in fixed] == [1, 1, COUNTS[-1] // FIXED]


def test_a_point_is_the_time_and_traffic_of_its_plan(config, cases):
    point = Scenarios(config, TERMS).configured(8)
    spent = predict_iteration(point.plan, TERMS.device, gpus=NODE)
    assert point.seconds == spent.total and point.throughput == 8 / spent.total
    assert point.sending == spent.sending / spent.total
    assert point.sent * 1e9 == sum(point.plan.traffic().values()) > 0
    own = next(iter(cases.values()))
    assert own[1].seconds == point.seconds and own[0].sent == 0


def test_the_quickest_layout_is_no_slower_than_the_configured_one(cases):
    own, grown, _ = cases.values()
    assert all(quick.seconds <= plain.seconds for quick, plain in zip(grown, own))


def test_a_table_compares_each_gpu_with_the_first_row(cases):
    points = next(iter(cases.values()))
    rows = [line.strip("| ").split(" | ") for line in table(points).splitlines()[2:]]
    assert [row[0] for row in rows] == [str(count) for count in COUNTS]
    shares = [p.throughput / p.gpus / points[0].throughput for p in points]
    assert [row[5] for row in rows] == [f"{share:.0%}" for share in shares]


def test_page_and_picture_show_every_model_and_case(cases):
    models = dict.fromkeys(("small", "medium", "large"), cases)
    text = page(models, TERMS)
    assert text.startswith("# Scaling: a prediction, not a measurement")
    assert all(text.count(f"### {name}\n") == text.count(f"* **{name}.** ") == 1 for name in models)
    assert all(text.count(table(points)) == len(models) for points in cases.values())
    lines = ElementTree.fromstring(draw(models, COUNTS)).findall(
        "{http://www.w3.org/2000/svg}polyline"
    )
    curves = [line for line in lines if len(line.get("points").split()) == len(COUNTS)]
    # videos a second of every case; and what is sent, for which one GPU has no point
    assert len(curves) == len(COLOURS) * len(DASHES)
    for line, points in zip(curves, [*cases.values()] * len(models), strict=True):
        below = [float(point.split(",")[1]) for point in line.get("points").split()]
        slowest_first = sorted(range(len(points)), key=lambda n: points[n].throughput)
        assert [below[n] for n in slowest_first] == sorted(below, reverse=True)
