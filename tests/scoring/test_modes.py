"""Precision and recall say what a student invents and what it drops."""

import json

import pytest
import torch
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.data.files import write_json
from tdmvid.data.video import write_image
from tdmvid.sampling.shots import plan_shots
from tdmvid.scoring.modes import precision_and_recall, score_modes
from tdmvid.scoring.modes_run import check_comparable
from tdmvid.shapes import TEACHER

STUDENT = {
    "model": {"path": "shapes", "adapters": [{"path": "/a/style.safetensors", "scale": 0.5}]},
    "adapter_files": ["1f3a"],
    "video": {"frames": 9, "height": 64, "width": 64, "fps": 8},
}


def cluster(place, count, generator):
    return torch.tensor(place) + 0.1 * torch.randn(count, 2, generator=generator)


def test_a_set_that_drops_a_mode_loses_recall_and_one_that_invents_a_mode_loses_precision():
    generator = torch.Generator().manual_seed(0)
    first, second = (cluster(place, 200, generator) for place in ((0.0, 0.0), (9.0, 0.0)))
    again, other = (cluster(place, 200, generator) for place in ((0.0, 0.0), (0.0, 9.0)))
    both = torch.cat([first, second])
    inside, covered = precision_and_recall(again, both)
    assert inside.double().mean() > 0.9
    assert covered[:200].double().mean() > 0.9 and not covered[200:].any()
    inside, covered = precision_and_recall(torch.cat([again, other]), first)
    assert covered.double().mean() > 0.9
    assert inside[:200].double().mean() > 0.9 and not inside[200:].any()


def test_too_few_seeds_are_refused():
    with refused("neighbours=3", "3 samples"):
        precision_and_recall(torch.zeros(3, 2), torch.zeros(9, 2))


@pytest.fixture
def folders(tmp_path):
    """The reference shows dark and bright pictures, "half" the dark ones alone; 16 seeds each."""
    generator = torch.Generator().manual_seed(1)
    for name, shades in (("reference", (-0.5, 0.5)), ("half", (-0.5, -0.5))):
        (tmp_path / name).mkdir()
        for seed in range(16):
            noise = 0.2 * torch.rand(3, 16, 16, generator=generator)
            write_image(tmp_path / name / f"a cat-{seed}.png", shades[seed % 2] + noise)
    return tmp_path


def test_the_page_and_the_figures_show_a_dropped_mode(folders, capsys):
    out = folders / "modes"
    given = [str(folders / name) for name in ("reference", "half")]
    main(["score", "modes", *given, "--out", str(out)])
    figures = json.loads((out / "modes.json").read_text())
    reference, half = figures["folders"]
    assert reference["recall"] is None and half["recall"]["value"] <= 0.5
    assert half["precision"]["value"] > 0.5
    assert half["diversity"]["value"] < 0.5 * reference["diversity"]["value"]
    page = (out / "modes.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "a cat" in page
    low, high = (f"{reference['diversity'][end]:.3f}" for end in ("low", "high"))
    assert f"[{low}, {high}]</td>" in page
    assert (out / "modes.jpg").stat().st_size > 1000
    assert str(folders / "half") in capsys.readouterr().out


def test_only_the_samples_that_are_asked_for_are_compared(folders):
    """Both folders have 16 seeds of a cat: an earlier call sampled more."""
    both = [folders / "reference", folders / "half"]
    write_image(both[0] / "a dog-0.png", torch.zeros(3, 16, 16))
    shots = plan_shots(["a cat"], range(6), frames=1, naming="prompt")
    scored = score_modes(both, folders / "out", shots=shots)
    assert [one.samples for one in scored] == [6, 6]
    alone = [folders / f"{folder.name} alone" for folder in both]
    for old, new in zip(both, alone, strict=True):
        new.mkdir()
        for shot in shots:
            (old / shot.file).rename(new / shot.file)
    fresh = score_modes(alone, folders / "out")
    assert [(one.diversity, one.recall) for one in scored] == [
        (one.diversity, one.recall) for one in fresh
    ]


def test_folders_of_different_prompts_are_refused(folders):
    for path in list((folders / "half").iterdir()):
        path.rename(path.with_name(path.name.replace("cat", "dog")))
    with refused("half", "a cat"):
        score_modes([folders / "reference", folders / "half"], folders / "out")


def test_too_few_seeds_in_a_folder_are_refused_before_a_sample_is_read(folders, monkeypatch):
    (folders / "half" / "a cat-3.png").unlink()
    monkeypatch.setattr("tdmvid.scoring.modes.read_sample", lambda _: pytest.fail("read"))
    both = [folders / "reference", folders / "half"]
    facts = ("--neighbours=15", "15 samples", "'a cat'", "16 seeds", "--neighbours 14")
    with refused(folders / "half", *facts):
        score_modes(both, folders / "out", neighbours=15)
    for path in list((folders / "half").iterdir())[1:]:
        path.unlink()
    with refused(folders / "half", "1 sample", "16 seeds") as caught:  # 0 neighbours are too few
        score_modes(both, folders / "out", neighbours=15)
    assert "--neighbours 0" not in str(caught.value)


@pytest.mark.parametrize(
    "options, facts",
    [
        (["--count", "3"], ("--neighbours=3", "--count=3", "--count 4")),
        (["--neighbours", "32"], ("--neighbours=32", "--count=32", "--count 33")),
        (["--batch", "0"], ("batch=0",)),
    ],
    ids=" ".join,
)
def test_too_few_seeds_are_refused_before_anything_is_sampled(
    tmp_path, monkeypatch, options, facts
):
    write_json(tmp_path / "export.json", STUDENT)
    monkeypatch.setattr(
        "tdmvid.scoring.modes_run.sample_students", lambda *_: pytest.fail("sampled")
    )
    given = [str(tmp_path), "--prompt", "a cat", "--out", str(tmp_path / "out"), *options]
    with refused(*facts, error=SystemExit):
        main(["score", "modes", *given])


def test_students_need_a_prompt_and_one_base(tmp_path):
    for name, base in (("a", "x/y"), ("b", "x/z")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "export.json", STUDENT | {"model": {"path": base}})
    both = [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    for options, facts in (([], ("--prompt",)), (["--prompt", "a cat"], ("x/y", "x/z"))):
        with refused(*facts, error=SystemExit):
            main(["score", "modes", *both, *options])


def exported(folder, model=(), video=(), **changes):
    folder.mkdir()
    facts = STUDENT | {
        "model": STUDENT["model"] | dict(model),
        "video": STUDENT["video"] | dict(video),
    }
    write_json(folder / "export.json", facts | changes)
    return folder


@pytest.mark.parametrize(
    "change, facts",
    [
        ({"model": {"path": "x/y"}}, ("model.path", "x/y")),
        ({"model": {"variant": "fp16"}}, ("model.variant='fp16'", "null")),
        ({"model": {"dtype": "bfloat16"}}, ("model.dtype='bfloat16'", "'float32'")),
        ({"model": {"tiling": True}}, ("model.tiling=true", "false")),
        ({"model": {"adapters": []}}, ("model.adapters.scale=[]", "0.5")),
        ({"model": {"adapters": [{"path": "/a/style.safetensors"}]}}, ("1.0", "0.5")),
        ({"adapter_files": ["77c0"]}, ("adapter_files=['77c0']", "1f3a")),
        ({"video": {"height": 32}}, ("video.height=32", "64")),
    ],
    ids=str,
)
def test_students_that_differ_in_what_they_sample_from_are_refused(tmp_path, change, facts):
    """The base, its LoRAs and the size are loaded once, for all of them."""
    first, other = exported(tmp_path / "first"), exported(tmp_path / "other", **change)
    with refused(first, other, *facts):
        check_comparable([first, exported(tmp_path / "same"), other])


def test_students_may_differ_in_where_files_are_and_in_what_changes_no_sample(tmp_path):
    moved = {"path": str(TEACHER), "adapters": [{"path": "/b/style.safetensors", "scale": 0.5}]}
    changes = {"model": moved | {"attention": "sdpa", "quantize": "int8"}, "video": {"fps": 4}}
    check_comparable(
        [exported(tmp_path / "a"), exported(tmp_path / "b", **changes), tmp_path / "a"]
    )
