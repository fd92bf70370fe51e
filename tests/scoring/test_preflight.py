"""A preflight names every file, its source and its place, before anything runs."""

from tdmvid.scoring.preflight import preflight
from tdmvid.scoring.vbench_files import NEEDS, needs_of
from tdmvid.scoring.vbench_scores import DIMENSIONS


def test_without_files_only_flickering_runs_and_only_unfiltered(tmp_path):
    assert preflight(list(DIMENSIONS), needs_of(static_filter=False), tmp_path).ready == (
        "temporal_flickering",
    )
    assert preflight(list(DIMENSIONS), needs_of(static_filter=True), tmp_path).ready == ()


def test_every_missing_file_is_named_once_with_source_and_users(tmp_path):
    text = preflight(list(DIMENSIONS), NEEDS, tmp_path).describe()
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
