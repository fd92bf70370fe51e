"""Check settings whose effect shows late in samples, or not in those of a few prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import PromptConfig, RunConfig
from ..config.resources import MODELS
from ..data.repetition import prompt_uses, trajectories
from .bands import FAR, Finding


@dataclass(frozen=True)
class Prompts:
    """What a run draws its prompts from, and how many ranks draw."""

    count: int
    """Number of training prompts."""
    ranks: int
    """Number of data-parallel ranks."""


GUIDANCE = (0.6, 2.5)
"""Range of `objective.cfg` divided by `guard.cfg`."""


def check_settings(config: RunConfig, prompts: Prompts) -> tuple[Finding, ...]:
    """Check guidance, the fake's learning rate and the repetition of prompts.

    Args:
        config: Settings of the run.
        prompts: Its prompts.

    Returns:
        One finding per problem.
    """
    found = (_guidance(config), _fake_rate(config), _prompt_uses(config, prompts))
    return tuple(finding for finding in found if finding)


def fake_rate(config: RunConfig) -> float | None:
    """Return the fake's learning rate times its updates per iteration, relative to `student.lr`.

    Args:
        config: Settings of the run.

    Returns:
        The ratio; None if the steps of the two optimisers cannot be compared.
    """
    updates = config.objective.roles.count("fake")
    if not updates or not config.student.algorithm == config.fake.algorithm == "adamw":
        return None
    return updates * config.fake.lr / config.student.lr


def _guidance(config: RunConfig) -> Finding | None:
    cfg, usual = config.objective.cfg, config.guard.cfg or config.objective.cfg
    ratio = cfg / usual
    low, high = GUIDANCE
    if low <= ratio <= high:
        return None
    more = ratio > high
    return Finding(
        "guidance",
        ratio,
        low,
        high,
        f"the student is trained with {'more' if more else 'less'} guidance than its teacher is"
        " used with",
        "objective.cfg was changed" + ("" if more else ", or left at 1, which means no guidance"),
        f"{'lower' if more else 'raise'} objective.cfg, or set guard.cfg to its value if this is"
        " intended",
        f"objective.cfg={cfg:g} is {ratio:.2g} times guard.cfg, should be {low:g} to {high:g}",
    )


def _fake_rate(config: RunConfig) -> Finding | None:
    ratio, least = fake_rate(config), config.guard.fake_rate
    if ratio is None or ratio >= least:
        return None
    updates = config.objective.roles.count("fake")
    times = f" x {updates} updates" if updates > 1 else ""
    return Finding(
        "fake_rate",
        ratio,
        least,
        FAR,
        "the fake cannot follow the student",
        "the fake learns more slowly than the student changes",
        f"raise fake.lr{_or_more_updates(config)}, or lower student.lr; 5 to 10 times student.lr is"
        " usual. If this is intended, lower guard.fake_rate",
        f"fake.lr={config.fake.lr:g}{times} is {ratio:.2g} times student.lr={config.student.lr:g},"
        f" should be at least {least:g}",
    )


def _or_more_updates(config: RunConfig) -> str:
    """Return the advice to update the fake more often, if the settings allow that."""
    objective = config.objective
    allowed = objective.draws == "own" and objective.updates == "sequential"
    return " or objective.fake_updates" if allowed else ""


def _prompt_uses(config: RunConfig, prompts: Prompts) -> Finding | None:
    uses = prompt_uses(config, prompts=prompts.count, ranks=prompts.ranks)
    most = config.guard.prompt_uses
    if not most or uses <= most:
        return None
    enough = math.ceil(trajectories(config, ranks=prompts.ranks) / most)
    used = f"{uses:,.1f}".removesuffix(".0")
    each = f"each of {prompts.count:,} prompts" if prompts.count > 1 else "the only prompt"
    return Finding(
        "prompt_uses",
        uses,
        0.0,
        most,
        "the student may work only for its training prompts",
        "there are too few of them",
        f"use {enough:,} or more{_example(config, enough)}, and check prompts.limit. If this is"
        " intended, raise guard.prompt_uses",
        f"{each} is used {used} times, should be at most {most:g}",
    )


def _example(config: RunConfig, enough: int) -> str:
    """Return a source of so many prompts, where a list suits the teacher."""
    if config.model.path in MODELS:
        return ", e.g. its own (prompts.path=shapes)" if config.model.path == "shapes" else ""
    if config.prompts.images or config.prompts.image_column != PromptConfig().image_column:
        return ""
    kind = "images" if config.video.frames == 1 else "videos"
    return f", e.g. generated ones (prompts.path={kind}:{enough})"
