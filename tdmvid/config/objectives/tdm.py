"""Settings of Trajectory Distribution Matching; distill/tdm.py has the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ranges import ranges_of
from ..rules import Rule
from .base import RULES, ObjectiveSettings, register_settings

FRESH_RULE = Rule(
    lambda objective: objective.fake_trajectories == "fresh" and objective.fake_updates == 1,
    "objective.fake_trajectories",
    "has no effect with fake_updates={fake_updates}, which shares the student's: use 'same', or"
    " more updates",
)
TDM_RULES = (
    *RULES,
    *ranges_of(
        "objective",
        ("margin_low", "margin_high", "fresh_noise", "huber_c", "snr_ceiling", "fake_updates"),
    ),
    FRESH_RULE,
    Rule(
        lambda objective: objective.huber_c is not None and objective.distance == "l2",
        "objective.huber_c",
        "has no effect with distance={distance}: leave it out, or use distance 'huber' or"
        " 'huber_vector'",
    ),
    Rule(
        lambda objective: objective.draws == "shared" and objective.fake_updates > 1,
        "objective.draws",
        "serves one update of the fake, not fake_updates={fake_updates}: use"
        " draws='own' or fake_updates=1",
    ),
    Rule(
        lambda objective: objective.updates == "joint" and objective.fake_updates > 1,
        "objective.updates",
        "takes one turn of each role, not {fake_updates} of the fake: use updates='sequential', or"
        " fake_updates=1",
    ),
    Rule(
        lambda objective: objective.draws == "shared" and objective.through_scores,
        "objective.draws",
        "calls the fake without a graph, and the gradient of kind={kind} passes through it: use"
        " draws='own', or another kind",
    ),
    Rule(
        lambda objective: objective.fake_weight == "velocity" and objective.fake_target == "exact",
        "objective.fake_weight",
        "has infinite variance at zero SNR with fake_target={fake_target}: use"
        " fake_target='x0_hat', or fake_weight='snr'",
    ),
    Rule(
        lambda objective: objective.importance == "sum" and objective.fake_target == "exact",
        "objective.importance",
        "has no effect with fake_target={fake_target}, which has no weights: use"
        " fake_target='x0_hat', or leave it out",
    ),
    Rule(
        lambda objective: objective.importance == "sum" and objective.from_clean,
        "objective.importance",
        "has no effect with match={match} and solver={solver}, where all weights are 1: use"
        " match='noisy' and"
        " solver='ddim', or leave it out",
    ),
    Rule(
        lambda objective: objective.segments == "everywhere" and objective.randmid,
        "objective.randmid",
        "has no effect with segments={segments}, where tau does not depend on s: set it to false,"
        " or use segments='separate'",
    ),
    Rule(
        lambda objective: objective.segments == "everywhere" and objective.match == "noisy",
        "objective.segments",
        "needs match='clean', since tau must lie above x_s with match={match}: use match='clean',"
        " or segments='separate'",
    ),
)


@register_settings
@dataclass(frozen=True)
class TDMSettings(ObjectiveSettings):
    """TDM's settings.

    Draw and losses default to those of the authors' released code. Not so `rollout` (theirs is
    full, with a k of its own for each turn), `cfg` (theirs is 4.5), `margin_low` (theirs bounds tau
    alone, not its distance to s); docs/objectives.md has all differences and why.
    """

    kind: Literal["tdm"] = "tdm"
    match: Literal["noisy", "clean"] = "noisy"
    """What is noised to tau: the trajectory's next state x_s, or the clean prediction (the paper's
    Table 8; DMD2's draw).
    """
    segments: Literal["separate", "to_terminal", "everywhere"] = "separate"
    """tau in [s_{k-1}, s_k], or in [s_{k-1}, s_K], where the trajectory starts: overlapping
    segments, which bias the one fake score; or in (0, 1], for `match` clean.
    """
    randmid: bool = False
    """Start the draw at a uniform time of the segment instead of s_{k-1}, as late as both margins
    of tau allow: [s_{k-1}, s_k - margin_low - margin_high].
    """
    margin_low: float = 0.02
    """tau stays at least this far above s (and at least one table entry)."""
    fresh_noise: float = 0.0
    """tau also stays where the fresh noise in x_tau has at least this level beta: nearly clean
    draws say nothing of a mode's mass.
    """
    margin_high: float = 0.01
    """tau stays this far below the segment's upper end."""
    distance: Literal["huber", "huber_vector", "l2"] = "huber"
    """The generator's loss, see losses.distance."""
    huber_c: float | None = None
    """None: 1e-3 for huber, 0.00054 sqrt(dimensions) for huber_vector."""
    fake_target: Literal["x0_hat", "exact"] = "x0_hat"
    """Regress on the student's prediction with importance weights (the released code), or on the
    exact conditional score.

    Only the exact one has the trajectory's own score as its optimum: a fake that regresses on
    x0_hat recognises it in the noise that x_s still carries.
    """
    importance: Literal["mean", "sum", "none"] = "mean"
    """Importance weights of fake_target x0_hat. mean: the log ratio is averaged over dimensions
    (the released code); sum: the exact ratio, clamped at 20; none: all weights are 1.
    """
    fake_weight: Literal["snr", "velocity"] = "snr"
    """snr: min(SNR, ceiling), the released code's, for eps-networks. velocity: min(1 / sigma^2,
    ceiling), the loss that v- and flow-networks are pretrained with; where the SNR ends at zero, as
    CogVideoX's does, the other hardly teaches the fake the first step.
    """
    snr_ceiling: float = 5.0
    """Largest weight of the fake's loss, see `fake_weight`."""
    fake_updates: int = 1
    """Fake updates per student update, each with a draw of its own."""
    fake_trajectories: Literal["same", "fresh"] = "same"
    """same: all updates of the fake draw on the student's trajectories; fresh: all but the last
    roll out new ones, of the same prompts.
    """

    rules: ClassVar[tuple[Rule, ...]] = TDM_RULES

    @property
    def roles(self) -> tuple[str, ...]:
        """The fake first, so that the student sees an updated score."""
        return ("fake",) * self.fake_updates + ("student",)

    @property
    def own_trajectories(self) -> int:
        """All updates of the fake but the last, if they are to be fresh."""
        return self.fake_updates - 1 if self.fake_trajectories == "fresh" else 0

    @property
    def from_clean(self) -> bool:
        """Whether the clean prediction is noised to tau; with `renoise` the next state is one with
        fresh noise, so that is no other draw.
        """
        return self.match == "clean" or self.solver == "renoise"
