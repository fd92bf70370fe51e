"""Settings of Trajectory Distribution Matching (TDM). The mathematics is in distill/tdm.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..ranges import ranges_of
from ..rules import Rule
from .base import RULES, ObjectiveSettings, register_settings

FRESH_RULE = Rule(
    lambda objective: objective.fake_trajectories == "fresh" and objective.fake_updates == 1,
    "objective.fake_trajectories",
    "has no effect with fake_updates={fake_updates}, because a single update uses the trajectories"
    " of the student: use 'same', or raise fake_updates",
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
        "has no effect with distance={distance}: remove it, or use distance 'huber' or"
        " 'huber_vector'",
    ),
    Rule(
        lambda objective: objective.draws == "shared" and objective.fake_updates > 1,
        "objective.draws",
        "supports one update of the fake, not fake_updates={fake_updates}: use draws='own' or"
        " fake_updates=1",
    ),
    Rule(
        lambda objective: objective.updates == "joint" and objective.fake_updates > 1,
        "objective.updates",
        "updates each role once, but fake_updates={fake_updates}: use updates='sequential', or"
        " fake_updates=1",
    ),
    Rule(
        lambda objective: objective.draws == "shared" and objective.through_scores,
        "objective.draws",
        "calls the fake without a graph, but the student's gradient of kind={kind} passes through"
        " the fake: use draws='own', or another kind",
    ),
    Rule(
        lambda objective: objective.importance == "sum" and objective.fake_target == "exact",
        "objective.importance",
        "has no effect with fake_target={fake_target}, which needs no importance weights: use"
        " fake_target='x0_hat', or remove it",
    ),
    Rule(
        lambda objective: objective.importance == "sum" and objective.from_clean,
        "objective.importance",
        "has no effect with match={match} and solver={solver}, where all weights are 1: use"
        " match='noisy' and solver='ddim', or remove it",
    ),
    Rule(
        lambda objective: (
            objective.reward_weights == "student" and objective.distance == "huber_vector"
        ),
        "objective.reward_weights",
        "weights samples through the normaliser, which distance={distance} does not have: use"
        " distance 'huber' or 'l2', or reward_weights='fake'",
    ),
    Rule(
        lambda objective: objective.reward_weights == "student" and objective.rollout == "stream",
        "objective.reward_weights",
        "needs the reward of the student's own trajectories, which is unknown with"
        " rollout={rollout} until they end: use rollout 'stop' or 'full', or reward_weights='fake'",
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
        "needs match='clean', because tau must be above s with match={match}: use match='clean',"
        " or segments='separate'",
    ),
)


@register_settings
@dataclass(frozen=True)
class TDMSettings(ObjectiveSettings):
    """Settings of TDM (arXiv 2503.06674).

    The defaults of draw and losses are those of the authors' released code, with three exceptions:
    `rollout` (released code: full, with a separate k for each update), `cfg` (released code: 4.5)
    and `margin_low` (the released code bounds tau itself, not its distance to s).
    docs/objectives.md lists all differences and the reasons.
    """

    title: ClassVar[str] = "Trajectory Distribution Matching (arXiv 2503.06674)"
    kind: Literal["tdm"] = "tdm"
    """Distillation method."""
    match: Literal["noisy", "clean"] = "noisy"
    """Sample that is noised to tau. `noisy`: the next state x_s of the trajectory. `clean`: the
    clean prediction (arXiv 2503.06674, Table 8; also the draw of DMD2).
    """
    segments: Literal["separate", "to_terminal", "everywhere"] = "separate"
    """Range of tau for step k. `separate`: [s_{k-1}, s_k]. `to_terminal`: [s_{k-1}, s_K], where s_K
    is the start of the trajectory; these segments overlap, which biases the single fake score.
    `everywhere`: (0, 1], only with `match: clean`.
    """
    randmid: bool = False
    """Draw s uniformly from [s_{k-1}, s_k - margin_low - margin_high] instead of using s_{k-1}.
    The range leaves room for both margins of tau.
    """
    margin_low: float = 0.02
    """Smallest distance of tau above s, in [0, 1). At least one table entry is kept in any case.
    Both margins are reduced in proportion where they are more than half of a segment together.
    """
    fresh_noise: float = 0.0
    """Smallest level beta of the fresh noise in x_tau, in [0, 1); tau is kept above the time that
    reaches it. Nearly clean draws carry no information about the mass of a mode. 0 adds no limit.
    """
    margin_high: float = 0.01
    """Smallest distance of tau below the upper end of its segment, in [0, 1)."""
    distance: Literal["huber", "huber_vector", "l2"] = "huber"
    """Loss between the student's prediction and its target: `huber` per element, `huber_vector` on
    the norm of each sample, or `l2`. See `tdmvid.distill.losses.distance` for the formulas.
    """
    huber_c: float | None = None
    """Constant c of the Huber losses, above 0. `null` uses 1e-3 for `huber` and
    0.00054 sqrt(dimensions) for `huber_vector`.
    """
    fake_target: Literal["x0_hat", "exact"] = "x0_hat"
    """Regression target of the fake. `x0_hat`: the student's clean prediction, with importance
    weights (the released code). `exact`: the exact conditional score.

    Only `exact` has the score of the trajectory as its optimum. A fake that regresses on x0_hat
    can recognise x0_hat from the noise that x_s still carries, which biases it.
    """
    importance: Literal["mean", "sum", "none"] = "mean"
    """Importance weights of `fake_target: x0_hat`. `sum`: the exact ratio, clamped at 20. `mean`:
    the mean over dimensions instead of the sum (the released code). `none`: all weights are 1.
    """
    fake_weight: Literal["snr", "velocity"] = "snr"
    """Weight of the fake's loss over time. `snr`: min(SNR, `snr_ceiling`), from the released code,
    for eps-networks. `velocity`: min(1 / sigma^2, `snr_ceiling`), the pretraining loss of v- and
    flow-networks. With zero terminal SNR, as in CogVideoX, `snr` hardly trains the fake at the
    first step.
    """
    snr_ceiling: float = 5.0
    """Upper limit of the weight that `fake_weight` selects, above 0."""
    fake_updates: int = 1
    """Updates of the fake per update of the student, 1 to 1000, each with its own draw."""
    fake_trajectories: Literal["same", "fresh"] = "same"
    """`same`: all updates of the fake use the student's trajectories. `fresh`: all updates of the
    fake except the last roll out new trajectories of the same prompts.
    """
    reward_weights: Literal["fake", "student"] = "fake"
    """Loss that `rewards` weight. `fake`: the fake's, by exp(-lam r). `student`: the student's, by
    exp(lam r), as in Re-DMD (Reward Forcing, arXiv 2512.04678). It is for comparison only: the
    student still stops moving where it equals its teacher, so the reward has little effect.
    """

    rules: ClassVar[tuple[Rule, ...]] = TDM_RULES

    @property
    def roles(self) -> tuple[str, ...]:
        """The fake, then the student, which sees the updated fake."""
        return ("fake",) * self.fake_updates + ("student",)

    @property
    def own_trajectories(self) -> int:
        """All updates of the fake except the last if `fake_trajectories` is fresh, otherwise 0."""
        return self.fake_updates - 1 if self.fake_trajectories == "fresh" else 0

    @property
    def from_clean(self) -> bool:
        """Whether x_tau is made from the clean prediction.

        This also holds for solver `renoise`: its next state is the clean prediction plus fresh
        noise, so both values of `match` give the same draw.
        """
        return self.match == "clean" or self.solver == "renoise"
