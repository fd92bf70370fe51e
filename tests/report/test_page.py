"""The page of a run: complete, self-contained, and safe to open whatever the prompts say."""

import base64
import json
import re

import pytest
from refusals import refused
from run_folder import (
    EXPORT,
    IMAGES,
    PARTS,
    PROMPTS,
    VIDEOS,
    Page,
    gallery,
    guarded,
    lora,
    picture,
    scores,
    write,
)

from tdmvid.report.page import write_report
from tdmvid.sampling.student import weights_of


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
        if tag == "a":  # what a reader may open lies in the run's folder
            assert re.fullmatch(r"[\w./-]+", attrs["href"]) and ".." not in attrs["href"]
            continue
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
        "use",
        "curves",
        "commands",
        "files",
        "config",
    ]


@pytest.mark.parametrize("missing", PARTS)
def test_a_missing_part_leaves_all_others(tmp_path, missing):
    for name, part in PARTS.items():
        if name != missing:
            part(tmp_path)
    assert set(Page(write_report(tmp_path).read_text()).sections) == {*PARTS, "files"} - {missing}


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


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    (tmp_path / "report.html").write_text("old")
    write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "old" not in (tmp_path / "report.html").read_text().split("<body>")[1]


@pytest.mark.parametrize("frames, noun, other", [(1, "image", "video"), (9, "video", "image")])
def test_the_page_of_an_image_run_speaks_of_images(tmp_path, frames, noun, other):
    gallery(tmp_path)
    write(tmp_path / "config.json", {"video": {"frames": frames}})
    page = write_report(tmp_path).read_text()
    assert f"network calls per {noun}" in page and f"network calls per {other}" not in page
    assert ('id="play"' in page) == (noun == "video")


def test_a_student_that_is_not_healthy_has_no_proud_head(tmp_path):
    for part in PARTS.values():
        part(tmp_path)
    guarded(tmp_path, 20)
    text = Page(write_report(tmp_path).read_text()).text
    assert "not healthy" in text and "student.lr" in text and "100 → 4" not in text
    guarded(tmp_path, 1)
    text = Page(write_report(tmp_path).read_text()).text
    assert "not healthy" not in text and "100 → 4" in text


def test_a_student_that_was_compared_early_is_not_called_like_its_teacher(tmp_path):
    guarded(tmp_path, 1)
    assert "looks like its teacher" in Page(write_report(tmp_path).read_text()).text
    kept = json.loads((tmp_path / "guard.json").read_text())
    kept["checks"] = [check | {"early": True} for check in kept["checks"]]
    write(tmp_path / "guard.json", kept)
    text = Page(write_report(tmp_path).read_text()).text
    assert "no large fault so early" in text and "looks like its teacher" not in text


def test_an_export_that_fails_its_check_has_no_proud_head(tmp_path):
    gallery(tmp_path)
    write(tmp_path / "lora/export.json", EXPORT | {"error": 1.0})
    assert "100 → 4" not in Page(write_report(tmp_path).read_text()).text


def test_a_run_without_scores_names_the_command_that_scores_it(tmp_path):
    command = {"what": "score", "command": "tdmvid score shapes --run here"}
    write(tmp_path / "commands.json", {"commands": [command]})
    assert "not scored" not in Page(write_report(tmp_path).read_text()).text  # no student yet
    lora(tmp_path)
    head = Page(write_report(tmp_path).read_text()).text
    assert "not scored yet: tdmvid score shapes --run here" in head
    scores(tmp_path)
    assert "not scored yet" not in Page(write_report(tmp_path).read_text()).text


def test_scores_of_an_older_student_are_not_shown(tmp_path):
    scores(tmp_path)
    lora(tmp_path)
    path = tmp_path / "scores.json"
    scored = json.loads(path.read_text())
    write(path, scored | {"weights": weights_of(tmp_path / "lora")})
    page = Page(write_report(tmp_path).read_text())
    assert "scores" in page.sections and "1 of 2 checks passed" in page.text
    write(tmp_path / "lora/a.safetensors", bytes(4096))  # trained or exported again
    page = Page(write_report(tmp_path).read_text())
    assert "scores" not in page.sections and "checks passed" not in page.text
    assert "95.0" not in page.text
