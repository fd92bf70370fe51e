"""Define how far a student's measures may be from its teacher's, and what is wrong if they are not.

The bands were measured; docs/troubleshooting.md lists runs that stay within them and runs that
leave them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

FAR = 100.0
"""Upper limit of the distance from the teacher's value, in bands."""

EARLY = 1.25
"""At the start of training, the student's distance, and that of each measure, may be this many
times the untrained network's.
"""
NEAR = 0.2
"""Largest distance at which it does not matter whether the untrained network was as close."""


@dataclass(frozen=True)
class Cause:
    """Why a measure leaves its band at one end, and what to change."""

    symptom: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Band:
    """The range of a student's measure relative to the teacher's.

    The relative measure is the ratio (student + floor) / (teacher + floor); the floor avoids
    dividing by the measure of a nearly static teacher. If `ratio` is False, it is the difference
    between student and teacher.
    """

    low: float
    high: float
    below: Cause | None
    above: Cause
    floor: float = 0.0
    ratio: bool = True

    @property
    def told(self) -> str:
        """The healthy range in words, to follow a relative measure."""
        if self.ratio:
            return f"times the teacher's, should be {self.low:g} to {self.high:g}"
        return f"from the teacher's, should be up to {self.high:g}"

    def relative(self, student: float, teacher: float) -> float:
        """Return the student's measure relative to the teacher's.

        Args:
            student: Measure of the student's samples.
            teacher: Measure of the teacher's samples.

        Returns:
            Their ratio or difference.
        """
        if self.ratio:
            return (student + self.floor) / (teacher + self.floor)
        return student - teacher

    def excess(self, relative: float) -> float:
        """Return the distance of a relative measure from the teacher's value, in bands.

        Args:
            relative: Result of `relative`.

        Returns:
            0 at the teacher's value, 1 at an end of the band, at most `FAR`.
        """
        if not math.isfinite(relative):
            return FAR
        if self.ratio:
            end = self.high if relative > 1 else self.low
            return min(abs(math.log(max(relative, 1e-9)) / math.log(end)), FAR)
        end = self.high if relative > 0 else self.low
        return min(abs(relative / end), FAR) if end else 0.0


@dataclass(frozen=True)
class Finding:
    """A measure outside its band, or a setting outside its limits."""

    measure: str
    relative: float
    low: float
    high: float
    symptom: str
    cause: str
    remedy: str
    place: str = ""
    """The value and its healthy range."""

    @property
    def brief(self) -> str:
        """Symptom and place."""
        return f"{self.symptom} ({self.place})" if self.place else self.symptom

    def __str__(self) -> str:
        return f"{self._why}. What to change: {self.remedy}"

    @property
    def of_run(self) -> str:
        """The text for a run that has begun, which is not resumed with other settings."""
        return f"{self._why}. What to change in a new run (another --out): {self.remedy}"

    @property
    def _why(self) -> str:
        return f"{self.brief}. Likely cause: {self.cause}"


@dataclass(frozen=True)
class Verdict:
    """Result of comparing the measures of a student's samples with its teacher's."""

    relative: dict[str, float]
    distance: float
    """Root mean square over the measures; each is 0 at the teacher's value and 1 at the end of its
    band.
    """
    findings: tuple[Finding, ...]
    early: bool = False
    """Whether the comparison was the loose one of the start of training."""


def judge(
    student: Mapping[str, float],
    teacher: Mapping[str, float],
    *,
    untrained: Mapping[str, float] | None = None,
    early: bool = False,
) -> Verdict:
    """Compare the measures that student and teacher have in common.

    Args:
        student: Measures of the student's samples, by name.
        teacher: Measures of the teacher's samples, by name.
        untrained: Measures of the network before training, sampled with the student's steps.
        early: Whether training has just begun. A measure may then be as far from the teacher's as
            `EARLY` times the untrained network's, and so may the distance. Later, the distance
            must be smaller than the untrained network's, or at most `NEAR`.

    Returns:
        Relative measures, distance and findings.
    """
    relative = _relative(student, teacher)
    excess = {name: BANDS[name].excess(value) for name, value in relative.items()}
    start = {
        name: BANDS[name].excess(value)
        for name, value in _relative(untrained or {}, teacher).items()
    }
    allowed = {name: max(1.0, EARLY * start.get(name, 0.0)) if early else 1.0 for name in excess}
    findings = tuple(
        _finding(name, relative[name]) for name, size in excess.items() if size > allowed[name]
    )
    distance = _distance(excess)
    share = distance / max(_distance(start), 1e-9) if start else 0.0
    if distance > NEAR and share >= (most := EARLY if early else 1.0):
        place = f"distance {share:.2g} times the untrained network's, should be below {most:g}"
        findings = (*findings, replace(NO_PROGRESS, relative=share, place=place))
    return Verdict(relative, distance, findings, early)


def _relative(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """Return the measures that both sides have, relative to the teacher's."""
    return {
        name: band.relative(student[name], teacher[name])
        for name, band in BANDS.items()
        if name in student and name in teacher
    }


def _distance(excess: Mapping[str, float]) -> float:
    """Return the root mean square over the measures."""
    return math.sqrt(sum(size * size for size in excess.values()) / max(len(excess), 1))


def _finding(name: str, relative: float) -> Finding:
    band = BANDS[name]
    low = relative < (1.0 if band.ratio else 0.0)
    cause = band.below if low and band.below else band.above
    return Finding(
        name,
        relative,
        band.low,
        band.high,
        cause.symptom,
        cause.cause,
        cause.remedy,
        f"{name} {relative:.2g} {band.told}",
    )


_NOISE = Cause(
    "the samples are noisy",
    "the student's steps are too large, or the fake does not follow it",
    "lower student.lr, raise fake.lr",
)
_BURNT = Cause(
    "colours are too strong",
    "the teacher's guidance is too high, or the fake does not follow the student",
    "lower objective.cfg, raise fake.lr",
)
_FADED = Cause(
    "colours are washed out",
    "the student's steps are too large, or the teacher has too little guidance",
    "lower student.lr, or raise objective.cfg if it was lowered",
)

BANDS = {
    "motion": Band(
        0.5,
        2.0,
        Cause(
            "the videos hardly move",
            "the student has collapsed to stills",
            "lower student.lr, and check that video.frames fits the teacher",
        ),
        _NOISE,
        floor=0.005,
    ),
    "flicker": Band(
        0.5,
        2.0,
        Cause(
            "frames change too evenly",
            "the student has collapsed to stills or fades",
            "lower student.lr",
        ),
        _NOISE,
        floor=0.1,
    ),
    "contrast": Band(0.6, 1.6, _FADED, _BURNT, floor=0.02),
    "saturation": Band(0.6, 1.6, _FADED, _BURNT, floor=0.02),
    "clipped": Band(-1.0, 0.2, None, _BURNT, ratio=False),
    "sharpness": Band(
        0.5,
        2.0,
        Cause(
            "the samples are blurred",
            "the student was not trained long enough, or the teacher has too little guidance",
            "train longer, raise objective.cfg",
        ),
        _NOISE,
        floor=0.005,
    ),
    "seeds": Band(
        0.5,
        2.0,
        Cause(
            "seeds of a prompt look alike",
            "the student has collapsed: its steps are too large, or the fake does not follow it",
            "lower student.lr, raise fake.lr",
        ),
        _NOISE,
        floor=0.02,
    ),
    "prompts": Band(
        0.5,
        2.0,
        Cause(
            "prompts look alike",
            "the student has collapsed: its steps are too large, or it trains on too few prompts",
            "lower student.lr, check prompts.path and prompts.limit",
        ),
        _NOISE,
        floor=0.02,
    ),
    "latents": Band(
        0.0,
        1.0,
        None,
        Cause(
            "the latents do not have the teacher's statistics",
            "the student has diverged",
            "lower student.lr, and check model.dtype",
        ),
        ratio=False,
    ),
}
"""Bands by measure. "latents" is `guard.measures.latent_distance`, which is 0 for the teacher."""

PROGRESS = "progress"
NO_PROGRESS = Finding(
    PROGRESS,
    1.0,
    0.0,
    1.0,
    "the student is no closer to its teacher than the untrained network (same number of steps)",
    "the fake does not follow the student, the learning rates are too high or too low, or there is"
    " no guidance",
    "check fake.lr, student.lr and objective.cfg",
)


def not_finite(what: str, dtype: str) -> Verdict:
    """Return the verdict on a student whose samples or losses are not finite.

    Args:
        what: Subject and verb, e.g. "the samples are".
        dtype: Dtype of the model.

    Returns:
        A verdict with one finding.
    """
    half = dtype == "float16"
    finding = Finding(
        "latents",
        FAR,
        0.0,
        1.0,
        f"{what} not finite",
        "a number has overflowed: the student has diverged"
        + ", or float16's range is too small" * half,
        "lower student.lr" + ", or use model.dtype='bfloat16'" * half,
    )
    return Verdict({}, FAR, (finding,))


DEMO = {
    "loss/fake": (0.007, 0.13),
    "loss/student": (0.5, 2.2),
    "gap/student": (0.5, 2.2),
    "grad_norm/fake": (0.0075, 0.16),
    "grad_norm/student": (0.2, 2.5),
    "ess/fake": (0.99, 1.0),
}
"""Ranges of logged numbers in the first hundred iterations of the demo, by name, with half its
batch.
"""
