"""Plots: named like the metrics, explained in one sentence, and true to the numbers."""

import numpy as np
import pytest

from tdmvid.guard.bands import BANDS
from tdmvid.report import plots
from tdmvid.report.meanings import MEASURES, sentence


def test_ticks_that_lie_close_together_have_texts_of_their_own():
    (panel,) = plots.panels(
        {"step": list(range(50)), "ess": [0.9996 + 0.000008 * step for step in range(50)]}
    )
    texts = [text for _, text in panel.y_ticks]
    assert len(texts) >= 3 and len(set(texts)) == len(texts) and "0.9997" in texts
    assert plots.labelled([0.0, 0.5, 1.0]) == [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]


def test_scalars_of_one_group_share_a_panel_and_bookkeeping_has_none():
    columns = {"loss/a": [1, 2, 3], "ess": [1, 1, 1], "loss/b": [3, 2, 1], "epoch": [0, 0, 0]}
    panels = plots.panels({"step": [0, 1, 2], **columns})
    assert [[line.name for line in panel.lines] for panel in panels] == [["a", "b"], [""]]
    metrics = [line.metric for panel in panels for line in panel.lines]
    assert metrics == ["loss/a", "loss/b", "ess"]
    assert panels[0].title == "loss"


def test_smoothing_keeps_a_constant_and_the_length():
    np.testing.assert_allclose(plots.smoothed(np.full(300, 2.5)), 2.5)
    assert len(plots.smoothed(np.arange(7.0))) == 7


def test_a_long_curve_is_thinned_but_keeps_its_spike():
    values = np.ones(20_000)
    values[12_345] = 50.0
    [panel] = plots.panels({"step": list(range(20_000)), "x": values.tolist()})
    heights = [float(point.split(" ")[1]) for point in panel.lines[0].raw[1:].split("L")]
    assert len(heights) < 500 and sum(y < plots.TOP for y in heights) == 1


def test_values_that_are_not_finite_are_told_and_not_drawn():
    loss = [1.0, 2.0, float("nan"), 4.0, float("inf"), 3.0]
    [panel] = plots.panels({"step": list(range(6)), "loss": loss})
    assert (
        panel.lines[0].note == "loss: 2 steps without a finite value"
        and "nan" not in panel.lines[0].raw
    )
    [panel] = plots.panels({"step": [0, 1], "loss": [float("nan")] * 2})
    assert panel.lines[0].last == "none" and panel.lines[0].note == "loss: no finite value"


def test_a_run_of_one_step_has_its_curves_too():
    [panel] = plots.panels({"step": [0], "loss": [0.25]})
    assert panel.lines[0].last == "0.25" and [label for _, label in panel.x_ticks] == ["0", "1"]


def test_numbers_are_short():
    numbers = {
        0: "0",
        2.4e-6: "2.4e-6",
        0.0012345: "0.00123",
        12.0: "12",
        12345.6: "12,346",
        -3e9: "-3e9",
    }
    assert {value: plots.short(value) for value in numbers} == numbers


@pytest.mark.parametrize("values", [[1e308, -1e308, 0.0], [1e-300, 1e308, 1.0]])
def test_the_numbers_of_a_diverged_run_are_drawn(values):
    (panel,) = plots.panels({"step": [0, 1, 2], "loss": values})
    assert panel.y_ticks and "nan" not in panel.lines[0].raw


def test_ticks_are_round_and_inside():
    assert plots.ticks(0, 2000, 5) == [0, 500, 1000, 1500, 2000]
    assert plots.ticks(0.1, 0.32, 5) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert plots.log_ticks(0.015, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert plots.log_ticks(1e-4, 1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_bands_lie_behind_the_curves_that_have_one():
    """A guard's measure has a panel of its own, whose middle is the teacher's value."""
    columns = {"step": [0, 1, 2], "guard/motion": [0.5, 1.0, 1.5], "guard/contrast": [1, 1, 1]}
    columns |= {"loss/fake": [0.01, 0.02, 0.05], "loss/else": [1, 1, 1]}
    assert not any(line.band for line in plots.panels(columns)[2].lines), "of the demo alone"
    panels = plots.panels(columns, demo=True)
    assert [panel.title for panel in panels] == ["guard/motion", "guard/contrast", "loss"]
    assert all(panel.lines[0].band for panel in panels[:2])
    for panel in panels[:2]:
        top, height = panel.lines[0].band
        assert plots.TOP < top < panel.teacher < top + height < plots.BOTTOM
    assert panels[2].teacher is None
    bands = {line.name: line.band for line in panels[2].lines}
    assert bands["fake"] and bands["fake"][1] > 0 and bands["else"] is None


def test_every_measure_of_the_guard_has_a_sentence_with_its_band():
    assert MEASURES.keys() == BANDS.keys()
    assert "0.6 to 1.6" in sentence("guard/contrast") and "divided" in sentence("guard/contrast")
    assert "-1 to 0.2" in sentence("guard/clipped") and "minus" in sentence("guard/clipped")
    assert sentence("loss") != sentence("ess") and "mine" in sentence("mine")
