"""The page in a real browser: rows in step, plots by keyboard, no sideways scrolling."""

import pytest
from browser import CHROMIUM, Browser
from run_folder import PARTS, SIDES, clip, write

from tdmvid.report.page import write_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="the report was not opened: no Chromium here (apt-get install chromium)",
    ),
]
# The largest difference of two videos of a row, seen for two and a half rounds of the videos.
APART = """new Promise(resolve => {
    const end = performance.now() + 2500;
    let apart = 0, rounds = 0, before = 0;
    const look = () => {
        for (const {videos} of rows) {
            const times = videos.map(v => v.currentTime);
            const apartNow = Math.max(...times) - Math.min(...times);
            if (videos.every(v => !v.ended)) apart = Math.max(apart, apartNow);
        }
        const now = rows[0].videos[0].currentTime;
        if (now < before) rounds++;
        before = now;
        performance.now() < end ? requestAnimationFrame(look) : resolve({apart, rounds});
    };
    look();
})"""
PLAYING = "rows.every(row => row.videos.every(v => !v.paused && v.currentTime > 0))"


@pytest.fixture
def report(tmp_path):
    for part in PARTS.values():
        part(tmp_path)
    for index, name in enumerate(SIDES):
        write(tmp_path / "gallery" / name, clip(40 * index, frames=8))
    return write_report(tmp_path)


def test_the_videos_of_a_row_play_in_step(report, tmp_path):
    with Browser(tmp_path) as browser:
        size = {"width": 1400, "height": 2000, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.open(report)
        browser.wait(PLAYING)
        browser.value("rows[0].videos[1].currentTime = 0.6")  # one falls out of step
        browser.value("new Promise(resolve => setTimeout(resolve, 800))")
        seen = browser.value(APART)
        browser.value("document.querySelector('#play').click()")
        assert browser.value("rows.every(row => row.videos.every(v => v.paused))")
    assert seen["rounds"] >= 1 and seen["apart"] < 0.3


def test_videos_grow_with_the_window_and_a_phone_does_not_scroll_sideways(report, tmp_path):
    widths = {}
    with Browser(tmp_path) as browser:
        for width in (390, 1000, 1700):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.call("Emulation.setDeviceMetricsOverride", **size)
            browser.open(report)
            widths[width] = browser.value("rows[0].videos[0].clientWidth")
            assert browser.value("document.documentElement.scrollWidth") <= width
    assert widths[390] < widths[1000] < widths[1700]


def test_a_plot_is_read_with_the_arrow_keys(report, tmp_path):
    with Browser(tmp_path) as browser:
        browser.open(report)
        browser.value("document.querySelector('[aria-label=loss][role=slider]').focus()")
        read = "document.activeElement.getAttribute('aria-valuetext')"
        browser.key("Home")
        assert browser.value(read).startswith("step 0: loss/fake")
        browser.key("ArrowRight")
        assert browser.value(read).startswith("step 1: loss/fake")
