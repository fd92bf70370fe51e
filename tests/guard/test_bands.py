"""The bands around a teacher's measures, and the findings outside them."""

import dataclasses
import re
from pathlib import Path

import pytest
from refusals import refused

from tdmvid.config import RunConfig, to_dict
from tdmvid.guard.bands import BANDS, FAR, judge, not_finite
from tdmvid.guard.record import GuardRecord

TEACHER = {
    "motion": 0.05,
    "flicker": 1.0,
    "contrast": 0.3,
    "saturation": 0.4,
    "clipped": 0.1,
    "sharpness": 0.1,
    "seeds": 0.3,
    "prompts": 0.3,
    "latents": 0.0,
}


def beside(name, relative):
    """A student with one measure at a given distance from the teacher's."""
    band, value = BANDS[name], TEACHER[name]
    moved = relative * (value + band.floor) - band.floor if band.ratio else value + relative
    return TEACHER | {name: moved}


ENDS = [
    (name, end)
    for name, band in BANDS.items()
    for end, cause in (("low", band.below), ("high", band.above))
    if cause
]


def test_the_teacher_itself_is_at_the_centre_of_every_band():
    verdict = judge(TEACHER, TEACHER)
    assert verdict.distance == 0 and not verdict.findings
    assert set(verdict.relative) == set(BANDS)


@pytest.mark.parametrize("name, end", ENDS)
def test_a_measure_beyond_an_end_is_found_and_one_within_is_not(name, end):
    band = BANDS[name]
    edge = getattr(band, end)
    centre = 1.0 if band.ratio else 0.0
    within, beyond = (edge + share * (edge - centre) for share in (-0.05, 0.05))
    assert not judge(beside(name, within), TEACHER).findings
    (finding,) = judge(beside(name, beyond), TEACHER).findings
    assert finding.measure == name
    assert finding.symptom == (band.below if end == "low" else band.above).symptom


@pytest.mark.parametrize("name, end", ENDS)
def test_every_remedy_names_a_setting_that_exists(name, end):
    def has(dotted):
        settings = to_dict(RunConfig())
        for part in dotted.split("."):
            settings = settings.get(part) if isinstance(settings, dict) else None
        return settings is not None

    band = BANDS[name]
    cause = band.below if end == "low" else band.above
    named = re.findall(r"\b[a-z]+\.[a-z_]+\b", cause.remedy)
    known = {field.name for field in dataclasses.fields(RunConfig().objective)}
    assert named
    assert all(has(one) or one.removeprefix("objective.") in known for one in named)


def test_a_student_farther_from_the_teacher_has_a_larger_distance():
    near, far = (judge(beside("motion", relative), TEACHER).distance for relative in (1.2, 2.0))
    assert 0 < near < far < FAR


def test_a_teacher_that_does_not_move_is_not_divided_by():
    still = TEACHER | {"motion": 0.0}
    assert not judge(still, still).findings
    assert [one.measure for one in judge(TEACHER, still).findings] == ["motion"]


@pytest.mark.parametrize("name", sorted(set(BANDS) & set(TEACHER)))
def test_a_measure_that_is_no_number_is_outside_of_its_band(name):
    found = judge(TEACHER | {name: float("nan")}, TEACHER).findings
    assert [one.measure for one in found] == [name]


def test_a_student_must_come_closer_than_the_untrained_network():
    near, far, away = (beside("motion", relative) for relative in (1.7, 1.75, 1.98))
    assert not judge(near, TEACHER, untrained=far).findings
    for student, early in ((far, False), (away, True)):
        (finding,) = judge(student, TEACHER, untrained=near, early=early).findings
        assert finding.measure == "progress" and "objective.cfg" in str(finding)
    assert not judge(far, TEACHER, untrained=near, early=True).findings


def test_what_the_untrained_network_shows_too_is_no_finding_early():
    """A base without guidance gives blurred samples in few steps, whatever is trained."""
    blurred, near, worse = (beside("sharpness", share) for share in (0.2, 0.19, 0.1))
    assert not judge(blurred, TEACHER, untrained=blurred, early=True).findings
    assert not judge(near, TEACHER, untrained=blurred, early=True).findings
    assert judge(worse, TEACHER, untrained=blurred, early=True).findings
    assert {one.measure for one in judge(blurred, TEACHER, untrained=blurred).findings} == {
        "sharpness",
        "progress",
    }


def test_a_student_close_to_its_teacher_need_not_beat_a_close_untrained_network():
    """With guidance-distilled teachers, the untrained network is close from the start."""
    start, student = beside("contrast", 1.02), beside("contrast", 1.05)
    assert not judge(student, TEACHER, untrained=start).findings
    assert not judge(student, TEACHER, untrained=start, early=True).findings


def test_an_early_check_is_not_called_a_match():
    early = judge(beside("sharpness", 0.2), TEACHER, untrained=beside("sharpness", 0.2), early=True)
    record = GuardRecord().with_check(100, {}, early)
    assert "too early" in record.summary() and "match" not in record.story(100, 100)
    later = record.with_check(300, {}, judge(beside("sharpness", 0.45), TEACHER))
    assert record.best == 100 and later.best == 300 and later.checks[-1].findings


def record_of(*distances):
    """A record of checks, one every 100 iterations, with the given distances from the teacher."""
    record = GuardRecord()
    for number, relative in enumerate(distances, start=1):
        student = beside("contrast", relative)
        record = record.with_check(100 * number, student, judge(student, TEACHER))
    return record


def test_the_best_student_is_the_closest_one_wherever_it_came(tmp_path):
    record = record_of(1.6, 1.1, 1.3)
    record.write(tmp_path)
    assert GuardRecord.read(tmp_path) == record and record.best == 200
    assert record.until(100).best == 100 and record.until(50).best == 0
    assert GuardRecord.read(tmp_path / "elsewhere") == GuardRecord()


def test_distances_to_another_reference_are_not_compared():
    """A resumed run may sample other prompts, with other guidance."""
    record = record_of(1.1)
    for step, contrast in ((200, 1.6), (300, 1.3)):
        verdict = judge(beside("contrast", contrast), TEACHER)
        record = record.with_check(step, {}, verdict, "another reference")
    assert record.best == 300 and record.best_of({100, 200}) == 200 and not record.best_of({100})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_another_dtype_is_advised_only_where_it_helps(dtype):
    [finding] = not_finite("the samples are", dtype).findings
    assert ("model.dtype='bfloat16'" in str(finding)) == (dtype == "float16")


def test_a_check_that_is_repeated_replaces_the_first_one():
    record = record_of(3.0, 1.1)
    again = record.with_check(100, {}, judge(beside("contrast", 1.0), TEACHER))
    assert sorted(check.step for check in again.checks) == [100, 200]
    assert again.about(100).distance < record.about(100).distance and again.best == 100


def test_only_students_whose_checkpoints_are_kept_can_be_chosen():
    record = record_of(3.0, 1.0, 2.0)
    steps = [check.step for check in record.checks]
    assert record.best_of(steps) == steps[1]
    assert record.best_of([steps[0], steps[2]]) == steps[2] and record.best_of([]) == 0


def test_a_card_says_which_student_it_is_of_and_whether_it_is_healthy():
    record = record_of(1.1, 5.0)
    assert "100 of 200" in record.story(100, 200) and "problems" not in record.story(100, 200)
    assert "**The guard found problems:**" in record.story(
        200, 200
    ) and "of 200" not in record.story(200, 200)
    assert record.story(150, 200) == ""


def test_the_end_of_a_run_speaks_of_the_exported_student():
    record = record_of(1.1, 5.0)
    assert "NOT HEALTHY after 200" in record.summary()
    assert "NOT" not in dataclasses.replace(record, exported=100).summary()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"checks": [{"step": 1}], "exported": 0}'])
def test_a_record_that_cannot_be_read_is_named_with_a_remedy(tmp_path, text):
    (tmp_path / "guard.json").write_text(text)
    with refused(str(tmp_path / "guard.json"), "not a record of the guard", "delete it"):
        GuardRecord.read(tmp_path)


@pytest.mark.parametrize("name", BANDS)
def test_the_page_on_troubleshooting_states_every_band(name):
    band = BANDS[name]
    page = (Path(__file__).parents[2] / "docs/troubleshooting.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    told = f"{band.low:g} to {band.high:g} times" if band.ratio else f"up to {band.high:g} more"
    assert row.rstrip(" |").endswith(told)
