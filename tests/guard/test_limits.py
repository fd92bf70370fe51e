"""What the guard finds in settings, before a run starts."""

from dataclasses import replace

import pytest

from tdmvid.config import ModelConfig, load_config
from tdmvid.guard.limits import Prompts, check_settings, fake_rate

MANY = Prompts(1_000_000, ranks=1)
OWN = ("objective.rollout=stop", "objective.draws=own")


def demo(*changes):
    return load_config("shapes_4nfe", list(changes))


def names(config, prompts=MANY):
    return [finding.measure for finding in check_settings(config, prompts)]


@pytest.mark.parametrize(
    "changes, ratio",
    [
        (("fake.lr=2e-3", "student.lr=8e-4"), 2.5),
        ((*OWN, "fake.lr=2e-4", "student.lr=8e-4", "objective.fake_updates=5"), 1.25),
        (("objective.kind=dmd2", *OWN, "fake.lr=1e-5", "student.lr=1e-5"), 5.0),
        (("student.algorithm=sgd",), None),
    ],
)
def test_the_fake_s_rate_counts_its_updates_in_an_iteration(changes, ratio):
    found = fake_rate(demo(*changes))
    assert found == (None if ratio is None else pytest.approx(ratio))


def test_a_fake_that_is_slower_than_its_student_is_found_with_both_settings():
    slow = ("fake.lr=2e-5", "student.lr=8e-4")
    (finding,) = check_settings(demo(*slow), MANY)
    assert finding.measure == "fake_rate" and finding.relative == pytest.approx(0.025)
    for fact in ("fake.lr=2e-05", "student.lr=0.0008", "objective.fake_updates"):
        assert fact in str(finding)
    (shared,) = check_settings(demo(*slow, "objective.draws=shared"), MANY)
    assert "raise fake.lr, or lower" in str(shared)  # which allows one update of the fake
    assert not names(demo(*OWN, *slow, "objective.fake_updates=40"))
    assert not names(demo("fake.lr=8e-4", "student.lr=8e-4"))
    assert not names(demo(*slow, "guard.fake_rate=0.02"))


def test_too_few_prompts_are_found_with_the_number_that_suffices():
    config = demo(*OWN, "steps=400", "batch.micro=8")
    assert not names(config, Prompts(64, ranks=1))
    (finding,) = check_settings(config, Prompts(64, ranks=2))
    assert finding.measure == "prompt_uses" and finding.relative == 100
    assert "use 128 or more, e.g. its own (prompts.path=shapes)" in str(finding)
    (other,) = check_settings(replace(config, model=ModelConfig(path="a/b")), Prompts(64, ranks=2))
    assert "prompts.path=videos:128" in str(other)
    frames = replace(config.prompts, images="made")
    other = replace(config, model=ModelConfig(path="a/b"), prompts=frames)
    assert "videos:" not in str(check_settings(other, Prompts(64, ranks=2)))
    assert not names(demo(*OWN, "steps=400", "batch.micro=8", "guard.prompt_uses=0"), Prompts(1, 1))


@pytest.mark.parametrize("cfg, found", [(2, False), (1.3, False), (1, True), (5, False), (6, True)])
def test_guidance_is_compared_with_the_teacher_s(cfg, found):
    assert names(demo(f"objective.cfg={cfg}", "guard.cfg=2")) == ["guidance"] * found


def test_no_guidance_beside_none_is_no_finding():
    assert not names(demo("objective.cfg=1", "guard.cfg=0"))
