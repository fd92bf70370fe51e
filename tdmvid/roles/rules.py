"""Which settings cannot be together: what a run and its plan refuse before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ..backbones.experts import Split
from ..config import RunConfig, TDMSettings
from ..config.rules import Rule, check_rules
from ..data.latents import real_files


def _is_adversarial(config: RunConfig) -> bool:
    return "discriminator" in config.objective.roles


def _needs_input_gradients(config: RunConfig) -> bool:
    """Whether a loss takes a gradient in a network's input."""
    return config.objective.through_scores or _is_adversarial(config)


RULES = (
    Rule(
        lambda run: _is_adversarial(run) and not run.real.path,
        "objective.kind",
        "compares with real clips: set real.path to a folder of videos or images, or use kind"
        " 'tdm'",
    ),
    Rule(
        lambda run: run.objective.conditioned_on_steps and not run.trains_lora,
        "objective.step_set",
        "needs an adapter, beside which the condition on K is trained, and training={training} has"
        " none: use training='lora', or k_condition=false",
    ),
    Rule(
        lambda run: _needs_input_gradients(run) and run.parallel.sequence > 1,
        "parallel.sequence",
        "does not work with objective.kind={objective.kind}, which takes a gradient in a network's"
        " input: use 1, or kind 'tdm'",
    ),
)
LAUNCHED_RULES = (
    Rule(
        lambda run: _needs_input_gradients(run) and run.parallel.zero_stage == 3,
        "parallel.zero_stage",
        "does not work with objective.kind={objective.kind}, which takes a gradient in a network's"
        " input, as DeepSpeed cannot with sharded weights: use 2, or kind 'tdm'",
    ),
    Rule(
        lambda run: run.model.quantize != "none",
        "model.quantize",
        "does not work under a launcher, as DeepSpeed moves every parameter, which torchao's"
        " tensors do not allow where two networks share them: start one process without a"
        " launcher, or use 'none'",
    ),
    Rule(
        lambda run: run.model.idle_expert == "host",
        "model.idle_expert",
        "does not work under a launcher, as DeepSpeed moves every parameter to the device: start"
        " one process without a launcher, or use 'device' with parallel.zero_stage=3",
    ),
    Rule(
        lambda run: run.parallel.compile is True and run.parallel.zero_stage == 3,
        "parallel.compile",
        "does not work with parallel.zero_stage={parallel.zero_stage}, as DeepSpeed's hooks gather"
        " the weights of every layer and break the blocks' graphs: set zero_stage to 2, or"
        " compile to false",
    ),
)
"""Of runs under a launcher, which DeepSpeed runs."""
EXPERT_RULES = (
    Rule(
        lambda run: isinstance(run.objective, TDMSettings) and run.objective.segments != "separate",
        "objective.segments",
        "compares scores on both sides of the boundary between the teacher's experts, and each"
        " segment belongs to one: use 'separate' and match='noisy'",
    ),
    Rule(
        lambda run: run.objective.rollout == "stream" and run.objective.stagger != "none",
        "objective.stagger",
        "spreads the trajectories over both of the teacher's experts, and an iteration trains one:"
        " use 'none', or rollout='stop'",
    ),
    Rule(
        _is_adversarial,
        "objective.kind",
        "needs features of one network, and this teacher has two experts: use kind 'tdm'",
    ),
    Rule(
        lambda run: not run.trains_lora,
        "training",
        "would hold six whole networks of this teacher of two experts: use 'lora'",
    ),
    Rule(
        lambda run: run.model.adapters,
        "model.adapters",
        "names LoRAs of one network, and this teacher has two experts: leave them out",
    ),
    Rule(
        lambda run: (
            run.model.idle_expert == "host"
            and (run.model.quantize != "none" or not run.parallel.share_base)
        ),
        "model.idle_expert",
        "moves the one unrounded base that all roles share: use model.quantize='none' and"
        " parallel.share_base=true, or 'device'",
    ),
)
"""Of teachers of two experts."""
SINGLE_RULES = (
    Rule(
        lambda run: run.model.idle_expert == "host",
        "model.idle_expert",
        "is of a teacher of two experts, and this one has one network: use 'device'",
    ),
    Rule(
        lambda run: run.objective.cfg_2 is not None,
        "objective.cfg_2",
        "is of a teacher's second expert, and this one has one network: leave it out"
        " (--set objective.cfg_2=null)",
    ),
)
"""Of teachers of one network."""


def check_settings(config: RunConfig, *, distributed: bool) -> None:
    """Check settings that depend on each other, and the folders that they name.

    Args:
        distributed: Whether a launcher starts the run.

    Raises:
        ValueError: For the first broken rule, or a folder that cannot be used.
    """
    check_rules(config, RULES)
    if distributed:
        check_rules(config, LAUNCHED_RULES)
    if _is_adversarial(config):
        real_files(config.real, frames=config.video.frames)
    check_folders(config)


def check_teacher(config: RunConfig, split: Split | None) -> float:
    """Check the settings that depend on whether the teacher has two experts.

    Args:
        config: The run's.
        split: How the experts share the times; None of a teacher of one network.

    Returns:
        The time from which the teacher calls its first expert; 0 for one network.

    Raises:
        ValueError: For the first broken rule.
    """
    check_rules(config, SINGLE_RULES if split is None else EXPERT_RULES)
    return split.time if split else 0.0


def check_folders(config: RunConfig) -> None:
    """Check that a run can write its folders.

    Raises:
        ValueError: If a file is in the place of one.
    """
    for name, path in (
        ("out", config.folder),
        ("prompts.cache", Path(config.prompts.cache)),
        ("real.cache", Path(config.real.cache)),
    ):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(
                f"{name}={str(path)!r} cannot be a folder, as {there} is a file: choose another"
            )
