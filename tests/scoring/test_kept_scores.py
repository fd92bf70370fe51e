"""An interrupted image evaluation goes on after the last metric, unless something has changed."""

import os
from dataclasses import replace

import pytest
import torch
from refusals import refused

from tdmvid.config import ClipSize, ImageConfig
from tdmvid.data.video import write_image
from tdmvid.sampling.shots import plan_shots
from tdmvid.scoring import image_run
from tdmvid.scoring.image_metrics import ImageMetric, SetMetric
from tdmvid.scoring.paired_samples import NAMES
from tdmvid.scoring.preflight import Needed
from tdmvid.scoring.vbench_suite import check_videos

SIZE = ClipSize(1, 16, 16)


@pytest.fixture
def calls(monkeypatch):
    """Metrics that note their calls: two of single images, one of sets."""
    noted = []

    def metric(name):
        def score(images):
            noted.append((name, images.files[0].parent.name))
            if name in broken:
                raise RuntimeError("the device was lost")
            return {"a cat": 1 / 3}

        return ImageMetric(name, (Needed("weights", ""),), score)

    def compare(ours, theirs, names):
        noted.append((ours.files[0].parent.name, theirs.files[0].parent.name))
        return {names[0]: 0.25}

    broken = set()
    metrics = {name: metric(name) for name in ("first", "second")}
    metrics["distance"] = SetMetric("distance", (), compare)
    monkeypatch.setattr(image_run, "METRICS", metrics)
    return noted, broken


@pytest.fixture
def evaluate(tmp_path, calls):
    """`evaluate()` scores all and returns the scores with the calls that were made."""
    shots = plan_shots(["a cat"], (0, 1), frames=1)
    config = ImageConfig(
        prompts="p.txt", cache=str(tmp_path), reference=str(tmp_path / "real"), video=SIZE
    )
    draw(tmp_path / "real" / "photo.png", 0.0)
    (tmp_path / "weights").write_bytes(b"1")
    for side, name in enumerate(NAMES):
        for at, shot in enumerate(shots):
            draw(tmp_path / "out" / name / shot.file, 0.1 + 0.2 * at + 0.05 * side)

    def evaluate():
        calls[0].clear()
        out, names = tmp_path / "out", ("first", "second", "distance")
        digests = {n: check_videos(out / n, [s.file for s in shots], SIZE) for n in NAMES}
        scores = [image_run.score(out / n, config, shots, names, digests[n]) for n in NAMES]
        return [*scores, image_run.score_sets(out, config, shots, names, digests)], [*calls[0]]

    evaluate.shots = shots
    return evaluate


def draw(file, level):
    file.parent.mkdir(parents=True, exist_ok=True)
    write_image(file, torch.full((3, 16, 16), level))


def test_an_interrupted_evaluation_goes_on_after_the_last_metric(
    evaluate, calls, monkeypatch, tmp_path
):
    monkeypatch.setenv("TDMVID_SAVED", str(tmp_path / "saved"))
    calls[1].add("second")
    with pytest.raises(RuntimeError, match="lost"):
        evaluate()
    assert calls[0] == [("first", "student"), ("second", "student")]
    assert (tmp_path / "saved").exists()
    calls[1].clear()
    scores, made = evaluate()
    assert made[0] == ("second", "student") and len(made) == 3 + 3
    assert evaluate() == (scores, [])
    assert scores[0] == {"first": {"a cat": 1 / 3}, "second": {"a cat": 1 / 3}}


def test_what_has_changed_is_scored_again(evaluate, tmp_path):
    evaluate()
    draw(tmp_path / "out" / "teacher" / evaluate.shots[1].file, 0.9)
    sides = [("student", "teacher"), ("teacher", "real")]
    assert evaluate()[1] == [("first", "teacher"), ("second", "teacher"), *sides]
    draw(tmp_path / "real" / "another.png", 0.5)
    assert evaluate()[1] == [("student", "real"), ("teacher", "real")]
    os.utime(tmp_path / "weights", ns=(1, 1))  # other weights
    assert len(evaluate()[1]) == 4 and not evaluate()[1]


def test_a_real_image_that_cannot_be_read_is_named_before_sampling(tmp_path):
    draw(tmp_path / "real" / "photo.png", 0.0)
    (tmp_path / "real" / "._photo.png").write_bytes(b"of another system, not an image")
    config = ImageConfig(prompts="p.txt", reference=str(tmp_path / "real"), video=SIZE)
    image_run.check_shots(config, plan_shots(["a cat"], (0,), frames=1), ())
    whole = (tmp_path / "real" / "photo.png").read_bytes()
    (tmp_path / "real" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with refused(str(tmp_path / "real" / "cut.png")):
        image_run.check_shots(config, plan_shots(["a cat"], (0,), frames=1), ())
    with refused("reference=", "none"):
        image_run.check_shots(
            replace(config, reference=str(tmp_path / "none")), plan_shots(["a"], (0,), frames=1), ()
        )
