"""A preflight lists every file with its source and place before anything runs."""

import re
import zipfile

from tdmvid.scoring.preflight import Needed, preflight
from tdmvid.scoring.vbench_download import download
from tdmvid.scoring.vbench_files import NEEDS, needs_of
from tdmvid.scoring.vbench_scores import DIMENSIONS, FACTS


def test_without_files_only_flickering_runs_and_only_unfiltered(tmp_path):
    assert preflight(list(DIMENSIONS), needs_of(static_filter=False), tmp_path).ready == (
        "temporal_flickering",
    )
    assert preflight(list(DIMENSIONS), needs_of(static_filter=True), tmp_path).ready == ()


def test_every_missing_file_is_named_once_with_source_and_users(tmp_path):
    text = preflight(list(FACTS), NEEDS, tmp_path).describe()
    for needs in NEEDS.values():
        for need in needs:
            assert text.count(f"{need.path}\n") == 1 and need.source in text
    assert "for background_consistency, appearance_style" in text and str(tmp_path) in text


def test_a_dimension_runs_when_all_its_files_are_there_and_not_empty(tmp_path):
    (tmp_path / "ViCLIP").mkdir()
    for need in NEEDS["temporal_style"]:
        (tmp_path / need.path).touch()
    assert "temporal_style" in preflight(["temporal_style"], NEEDS, tmp_path).missing  # empty files
    for need in NEEDS["temporal_style"]:
        (tmp_path / need.path).write_text("weights")
    checked = preflight(["temporal_style", "scene"], NEEDS, tmp_path)
    assert (
        checked.ready == ("temporal_style",)
        and set(checked.missing) == {"scene"}
        and not checked.whole
    )


def test_what_is_missing_is_fetched_whole_or_not_at_all(tmp_path):
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    (source / "a.pth").write_bytes(b"weights")
    (source / "page.pth").write_text("<!DOCTYPE html><p>sign in")
    (source / "empty.pth").touch()
    with zipfile.ZipFile(source / "models.zip", "w") as packed:
        packed.writestr("models/deep/c.pth", b"packed")
    url = source.as_uri()
    needs = (
        Needed("x/a.pth", f"{url}/a.pth"),
        Needed("x/page.pth", f"{url}/page.pth"),
        Needed("x/empty.pth", f"{url}/empty.pth"),
        Needed("x/gone.pth", "a page", url=f"{url}/gone.pth"),
        Needed("y/c.pth", "an archive", url=f"{url}/models.zip"),
        Needed("y/d.pth", "an archive", url=f"{url}/models.zip"),
    )
    failed = download(preflight(["m"], {"m": needs}, cache), tmp_path / "python")
    assert set(failed) == {"x/page.pth", "x/empty.pth", "x/gone.pth", "y/d.pth"}
    assert (cache / "x/a.pth").read_bytes() == b"weights"
    assert (cache / "y/c.pth").read_bytes() == b"packed"
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 2


def test_everything_that_a_dimension_needs_has_an_address_to_fetch_it_from():
    for need in (need for needs in needs_of(static_filter=True).values() for need in needs):
        assert re.fullmatch(r"(hub:[\w-]+|(git\+)?https://[\w./-]+)", need.fetched_from), need


def test_a_package_counts_where_the_metrics_will_run(tmp_path):
    for need in NEEDS["color"]:
        path = tmp_path / need.path
        if need.path.startswith("huggingface"):
            path.mkdir(parents=True)
            path /= "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("weights")
    assert [need.path for need in preflight(["color"], NEEDS, tmp_path).missing["color"]] == [
        "detectron2"
    ]
    assert preflight(["color"], NEEDS, tmp_path, packages=("detectron2",)).whole


def test_an_archive_of_a_folder_is_unpacked_whole(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.writestr("a.pth", "weights")
        packed.writestr("lora/config.json", "{}")
    needed = Needed("model", "somewhere", url=(tmp_path / "all.zip").as_uri())
    checked = preflight(["x"], {"x": (needed,)}, tmp_path / "cache")
    assert download(checked, tmp_path / "python") == {}
    found = tmp_path / "cache" / "model"
    assert (found / "a.pth").read_text() == "weights" and (found / "lora/config.json").is_file()
    assert preflight(["x"], {"x": (needed,)}, tmp_path / "cache").whole
