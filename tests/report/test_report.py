"""The page of a run: complete, self-contained, and safe to open whatever the prompts say."""

import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from PIL import Image
from refusals import refused

from tdmvid.guard.bands import judge
from tdmvid.guard.record import GuardRecord
from tdmvid.report import plots
from tdmvid.report.page import write_report

PROMPTS = ["a red circle moving left", '<script>alert("x")</script> & more', "it's 5 > 3"]
SIDES = [f"{who}/{index}.mp4" for who in ("teacher", "student") for index in range(3)]


def picture(level):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(data, format="PNG")
    return data.getvalue()


def clip(level):
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height = stream.width = 32
        frame = np.full((32, 32, 3), level, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


VIDEOS = {name: clip(40 * index) for index, name in enumerate(SIDES)}
IMAGES = {"traj/teacher_0.png": picture(50), "traj/student_0.png": picture(200)}


class Page(HTMLParser):
    """Every element's tag and attributes, the text outside styles and scripts, and what ids there
    are.
    """

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self._inside = [], [], None
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.sections = [
            attrs["id"] for tag, attrs in self.elements if tag == "section" and "id" in attrs
        ]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.words.append(data)

    def sources(self, tag):
        return [attrs["src"] for name, attrs in self.elements if name == tag]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    (
        path.write_bytes(content)
        if isinstance(content, bytes)
        else path.write_text(json.dumps(content))
    )


def gallery(out):
    columns = [("teacher, 50 steps", 100, "teacher"), ("student, 4 steps", 4, "student")]
    write(
        out / "gallery/gallery.json",
        {
            "prompts": PROMPTS,
            "columns": [
                {"name": name, "nfe": nfe, "videos": [f"{who}/{i}.mp4" for i in range(3)]}
                for name, nfe, who in columns
            ],
        },
    )
    for name, content in VIDEOS.items():
        write(out / "gallery" / name, content)


def trajectories(out):
    write(
        out / "gallery/trajectories.json",
        {
            "prompt": PROMPTS[1],
            "rows": [
                {"name": who, "labels": ["t=999"], "images": [f"traj/{who}_0.png"]}
                for who in ("teacher", "student")
            ],
        },
    )
    for name, content in IMAGES.items():
        write(out / "gallery" / name, content)


def scores(out):
    def interval(value):
        return {
            "value": value,
            "low": value - 0.02,
            "high": value + 0.02,
        }

    write(
        out / "scores.json",
        {
            "protocol": "512 held-out prompts",
            "columns": [
                {"key": "right", "label": "all right", "unit": "%", "better": "high"},
                {"key": "fd", "label": "distance", "unit": "", "better": "low"},
            ],
            "samplers": [
                {
                    "name": "teacher",
                    "nfe": 100,
                    "seconds_per_video": 12.0,
                    "metrics": {"right": interval(0.9), "fd": interval(8)},
                },
                {
                    "name": "student",
                    "nfe": 4,
                    "seconds_per_video": 0.5,
                    "metrics": {"right": interval(0.95), "fd": interval(9)},
                },
                {
                    "name": "data",
                    "nfe": None,
                    "seconds_per_video": None,
                    "metrics": {"right": interval(0.97)},
                },
            ],
            "checks": [
                {"claim": "as right", "value": "+5 points", "passed": True},
                {"claim": "as close", "value": "1.13 x", "passed": False},
            ],
        },
    )


def metrics(out):
    rows = [
        {"step": s, "loss/fake": 1 / (s + 1), "loss/student": 0.5, "ess": 0.9, "seconds": 36.0}
        for s in range(200)
    ]
    write(
        out / "metrics.jsonl", ("\n".join(map(json.dumps, rows)) + '\n{"step": 200, "lo').encode()
    )


def vbench(out):
    score = {"value": 0.975, "low": 0.972, "high": 0.977}
    samplers = [{"name": name, "scores": {"scene": score}} for name in ("student", "teacher")]
    results = {"title": "VBench <i>", "protocol": "944 prompts", "notes": ["Partial."]}
    results |= {"samplers": samplers, "differences": {}}
    write(out / "vbench/results.json", results)


EXPORT = {"error": 2e-6, "tolerance": 1e-4, "files": ["lora/a.safetensors"]}
COMMANDS = {"commands": [{"what": "train", "command": "python a.py --x '<y>'"}]}
PARTS = {
    "videos": gallery,
    "trajectories": trajectories,
    "scores": scores,
    "vbench": vbench,
    "curves": metrics,
    "lora": lambda out: write(out / "lora/export.json", EXPORT),
    "commands": lambda out: write(out / "commands.json", COMMANDS),
    "config": lambda out: write(
        out / "config.json", {"name": "shapes & co", "base": "https://example.org/x"}
    ),
}


@pytest.fixture
def page(tmp_path):
    for part in PARTS.values():
        part(tmp_path)
    return write_report(tmp_path).read_text()


def test_every_prompt_is_shown_as_text_and_never_as_markup(page):
    parsed = Page(page)
    for prompt in PROMPTS:
        assert prompt in parsed.text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert [tag for tag, _ in parsed.elements].count("script") == 1


def test_exactly_the_given_videos_and_images_are_embedded_row_by_row(page):
    def uri(mime, content):
        return f"data:{mime};base64,{base64.b64encode(content).decode()}"

    rows = [VIDEOS[f"{who}/{index}.mp4"] for index in range(3) for who in ("teacher", "student")]
    assert Page(page).sources("video") == [uri("video/mp4", content) for content in rows]
    assert Page(page).sources("img") == [uri("image/png", content) for content in IMAGES.values()]


@pytest.mark.parametrize("name", ["../../secret.png", "link.mp4", "page.png"])
def test_a_gallery_shows_its_own_videos_and_images_alone(tmp_path, name):
    run = tmp_path / "run"
    gallery(run)
    (tmp_path / "secret.png").write_bytes(picture(9))
    (run / "gallery/link.mp4").symlink_to(tmp_path / "secret.png")
    (run / "gallery/page.png").write_text("<svg/>")
    shown = json.loads((run / "gallery/gallery.json").read_text())
    shown["columns"][0]["videos"][1] = name
    write(run / "gallery/gallery.json", shown)
    with refused(name.removeprefix("../../")):
        write_report(run)
    assert not (run / "report.html").exists()


def test_nothing_is_fetched(page):
    for tag, attrs in Page(page).elements:
        for name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, name, attrs[name])
    assert not re.search(r"@import|url\((?!#clip)|fetch\(|XMLHttp|<base|<iframe", page)
    assert "default-src 'none'" in page


def test_all_parts_are_there_in_reading_order(page):
    assert Page(page).sections == [
        "videos",
        "trajectories",
        "scores",
        "vbench",
        "lora",
        "curves",
        "commands",
        "config",
    ]


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_part_leaves_all_others(tmp_path, missing):
    for name, part in PARTS.items():
        if name != missing:
            part(tmp_path)
    assert set(Page(write_report(tmp_path).read_text()).sections) == set(PARTS) - {missing}


def test_an_empty_run_still_has_a_page(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert page.sections == [] and tmp_path.name in page.text and "nothing yet" in page.text


def test_a_video_that_was_not_made_leaves_its_place_empty(tmp_path):
    gallery(tmp_path)
    (tmp_path / "gallery/student/1.mp4").unlink()
    page = write_report(tmp_path).read_text()
    assert len(Page(page).sources("video")) == 5 and page.count('class="missing"') == 1


def test_the_head_names_the_run_and_the_network_calls(page):
    text = Page(page).text
    assert "100 → 4" in text and "25 times fewer" in text
    assert "<title>shapes &amp; co</title>" in page
    assert (
        "200 steps" in text and "2.0 hours of training" in text and "1 of 2 checks passed" in text
    )


def test_the_best_sampler_of_each_column_is_marked_and_the_data_is_out_of_competition(page):
    assert re.findall(r'class="best">([^<]*)<', page) == ["8.00", "95.0"]
    assert "93.0 to 97.0" in page and "97.0" in page


def test_an_evaluation_s_table_is_shown_for_the_student_that_it_scored_alone(tmp_path):
    vbench(tmp_path)
    text = Page(write_report(tmp_path).read_text()).text
    assert "VBench <i>" in text and "scene 97.5 97.2 to 97.7" in text and "Partial." in text
    results = json.loads((tmp_path / "vbench/results.json").read_text())
    write(tmp_path / "vbench/results.json", results | {"weights": "of another student"})
    assert "VBench" not in Page(write_report(tmp_path).read_text()).text


def test_a_column_of_equal_scores_has_its_dots_in_the_middle(tmp_path):
    """At its lower end they would say that all are bad."""
    score = {"value": 1.0, "low": 1.0, "high": 1.0}
    samplers = [
        {"name": name, "nfe": 4, "metrics": {"right": score}} for name in ("teacher", "student")
    ]
    write(
        tmp_path / "scores.json",
        {
            "columns": [{"key": "right", "label": "right", "unit": "%", "better": "high"}],
            "samplers": samplers,
        },
    )
    assert re.findall(r'<b style="left: ([\d.]+)%', write_report(tmp_path).read_text()) == [
        "50.0",
        "50.0",
    ]


def test_ticks_that_lie_close_together_have_texts_of_their_own():
    (panel,) = plots.panels(
        {"step": list(range(50)), "ess": [0.9996 + 0.000008 * step for step in range(50)]}
    )
    texts = [text for _, text in panel.y_ticks]
    assert len(texts) >= 3 and len(set(texts)) == len(texts) and "0.9997" in texts
    assert plots.labelled([0.0, 0.5, 1.0]) == [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]


def test_checks_and_the_exported_lora_say_pass_or_fail(page):
    assert re.findall(r'class="mark (\w+)"', page) == ["pass", "fail", "pass"]
    text = Page(page).text
    assert "relative difference 2e-6 , allowed 1e-4 ." in text and "lora/a.safetensors" in text


def test_an_export_beyond_its_tolerance_fails(tmp_path):
    write(tmp_path / "lora/export.json", {"error": 2e-4, "tolerance": 1e-4, "files": []})
    assert re.findall(r'class="mark (\w+)"', write_report(tmp_path).read_text()) == ["fail"]


def test_a_command_can_be_copied_as_it_was_typed(page):
    assert unescape(re.search(r"<pre><code>(.*?)</code>", page)[1]) == "python a.py --x '<y>'"


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    (tmp_path / "report.html").write_text("old")
    write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "old" not in (tmp_path / "report.html").read_text().split("<body>")[1]


def test_scalars_of_one_group_share_a_panel_and_bookkeeping_has_none():
    columns = {"loss/a": [1, 2, 3], "ess": [1, 1, 1], "loss/b": [3, 2, 1], "epoch": [0, 0, 0]}
    panels = plots.panels({"step": [0, 1, 2], **columns})
    assert [[line.name for line in panel.lines] for panel in panels] == [["a", "b"], [""]]
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


def test_ticks_are_round_and_inside():
    assert plots.ticks(0, 2000, 5) == [0, 500, 1000, 1500, 2000]
    assert plots.ticks(0.1, 0.32, 5) == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3])
    assert plots.log_ticks(0.015, 0.3) == pytest.approx([0.02, 0.05, 0.1, 0.2])
    assert plots.log_ticks(1e-4, 1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


def guarded(out, relative):
    """A run whose last check found its sharpness so many times the teacher's."""
    measures = {"sharpness": 0.1}
    verdict = judge({"sharpness": 0.1 * relative}, measures)
    GuardRecord().with_check(100, measures, verdict).write(out)


def test_a_student_that_is_not_healthy_has_no_proud_head(tmp_path):
    for part in PARTS.values():
        part(tmp_path)
    guarded(tmp_path, 20)
    text = Page(write_report(tmp_path).read_text()).text
    assert "not healthy" in text and "student.lr" in text and "100 → 4" not in text
    guarded(tmp_path, 1)
    text = Page(write_report(tmp_path).read_text()).text
    assert "not healthy" not in text and "100 → 4" in text


def test_an_export_that_fails_its_check_has_no_proud_head(tmp_path):
    gallery(tmp_path)
    write(tmp_path / "lora/export.json", EXPORT | {"error": 1.0})
    assert "100 → 4" not in Page(write_report(tmp_path).read_text()).text


def test_a_run_without_scores_names_the_command_that_scores_it(tmp_path):
    command = {"what": "score", "command": "tdmvid score shapes --run here"}
    write(tmp_path / "commands.json", {"commands": [command]})
    head = Page(write_report(tmp_path).read_text()).text
    assert "not scored yet: tdmvid score shapes --run here" in head
    scores(tmp_path)
    assert "not scored yet" not in Page(write_report(tmp_path).read_text()).text


def test_bands_lie_behind_the_curves_that_have_one():
    """A guard's measure has a panel of its own, whose middle is the teacher's value."""
    columns = {"step": [0, 1, 2], "guard/motion": [0.5, 1.0, 1.5], "guard/contrast": [1, 1, 1]}
    panels = plots.panels(columns | {"loss/fake": [0.01, 0.02, 0.05], "loss/else": [1, 1, 1]})
    assert [panel.title for panel in panels][:2] == [
        "guard, motion: ratio",
        "guard, contrast: ratio",
    ]
    assert all(panel.lines[0].band for panel in panels[:2])
    bands = {line.name: line.band for line in panels[2].lines}
    assert bands["fake"] and bands["fake"][1] > 0 and bands["else"] is None
