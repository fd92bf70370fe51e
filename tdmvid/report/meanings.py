"""One sentence for each plot: what its numbers are, and what its shaded band is."""

from __future__ import annotations

from ..guard.bands import BANDS, DEMO, Band

GUARD = "guard"
SENTENCES = {
    "loss": "Training losses: loss/fake rises when the student moves faster than the fake follows,"
    " and loss/student need not fall while both move.",
    "ess": "Effective share of the weighted samples: at a low value, a few samples carry the loss.",
    "gap": "Distance of teacher and fake at the student's samples, relative to the distance of the"
    " samples from the teacher's prediction.",
    "pull": "Size of the student's gradient direction, relative to the distance of its samples from"
    " the clean prediction.",
    "grad_norm": "Gradient norm of each role before clipping.",
    "right": "Share of samples that the discriminator classifies correctly.",
    "adversarial": "The student's adversarial loss, before it is weighted.",
    "reward": "Mean of each reward over the samples of a step.",
    "failed": "Samples that a reward function could not score.",
    "calls": "Network calls of all roles for one sample; tdmvid plan computes the same number.",
    "seconds": "Seconds of one step, without samples, guard and the start of a checkpoint.",
    "lr": "Learning rate.",
    "guard/distance": "Root mean square over all measures, each 0 at the teacher's"
    ' value and 1 at an end of its band; export.select="best" exports the student with the smallest'
    " distance.",
    "guard/seconds": "Seconds of one comparison with the teacher, without sampling.",
}
"""Metric, or group of metrics, to its sentence."""
MEASURES = {
    "motion": "Mean absolute difference of successive frames",
    "flicker": "Second difference over time as a share of the first",
    "contrast": "Standard deviation of the brightness in a frame",
    "saturation": "Largest minus smallest colour value of a pixel",
    "clipped": "Share of colour values at the end of their range",
    "sharpness": "Mean absolute Laplacian of the brightness",
    "seeds": "Distance between samples of one prompt from different noise",
    "prompts": "Distance between samples of different prompts",
    "latents": "Distance of the latents' means and deviations from the teacher's",
}
"""The guard's measure to what it is."""


def usual_range(metric: str, *, demo: bool) -> tuple[float, float] | None:
    """Return the guard's band of a metric, or None if it has none.

    Args:
        metric: The metric.
        demo: Whether the run is one of the demo's teacher, whose other metrics have known ranges.
            They depend on the teacher.
    """
    band = guard_band(metric)
    if band:
        return band.low, band.high
    return DEMO.get(metric) if demo else None


def guard_band(metric: str) -> Band | None:
    """Return the guard's band of a metric, or None if it has none."""
    group, _, measure = metric.partition("/")
    return BANDS.get(measure) if group == GUARD else None


def sentence(key: str) -> str:
    """Return the sentence under the plot of a metric or of a group of metrics."""
    if band := guard_band(key):
        compared = "student divided by teacher" if band.ratio else "student minus teacher"
        what = MEASURES[key.partition("/")[2]]
        return (
            f"{what}, {compared}; shaded: the guard's band, {band.low:g} to {band.high:g}; dashed:"
            " the teacher."
        )
    return SENTENCES.get(key, f"Logged as {key}.")
