"""Rules on combinations of settings, which a run and its plan check before loading anything."""

from __future__ import annotations

from pathlib import Path

from ..backbones.base import Backbone
from ..backbones.experts import Split
from ..config import RunConfig, TDMSettings
from ..config.rules import Rule, check_rules
from ..data.latents import real_files


def _is_adversarial(config: RunConfig) -> bool:
    return "discriminator" in config.objective.roles


def _needs_input_gradients(config: RunConfig) -> bool:
    """Return whether a loss needs gradients with respect to a network's input."""
    return config.objective.through_scores or _is_adversarial(config)


RULES = (
    Rule(
        lambda run: _is_adversarial(run) and not run.real.path,
        "objective.kind",
        "needs real clips: set real.path to a folder of videos or images, or use kind 'tdm'",
    ),
    Rule(
        lambda run: run.objective.conditioned_on_steps and not run.trains_lora,
        "objective.step_set",
        "trains a condition on K beside an adapter, but training={training} has no adapter: use"
        " training='lora', or k_condition=false",
    ),
    Rule(
        lambda run: _needs_input_gradients(run) and run.parallel.sequence > 1,
        "parallel.sequence",
        "does not work with objective.kind={objective.kind}, which needs gradients with respect to"
        " a network's input: use 1, or kind 'tdm'",
    ),
)
LAUNCHED_RULES = (
    Rule(
        lambda run: _needs_input_gradients(run) and run.parallel.zero_stage == 3,
        "parallel.zero_stage",
        "does not work with objective.kind={objective.kind}, which needs gradients with respect to"
        " a network's input; DeepSpeed does not support these with sharded weights: use 2, or kind"
        " 'tdm'",
    ),
    Rule(
        lambda run: run.model.quantize != "none",
        "model.quantize",
        "does not work under a launcher: DeepSpeed moves every parameter, which torchao's tensors"
        " do not allow if two networks share them. Start one process without a launcher, or use"
        " 'none'",
    ),
    Rule(
        lambda run: run.model.idle_expert == "host",
        "model.idle_expert",
        "does not work under a launcher, because DeepSpeed moves every parameter to the device:"
        " start one process without a launcher, or use 'device' with parallel.zero_stage=3",
    ),
    Rule(
        lambda run: run.parallel.compile is True and run.parallel.zero_stage == 3,
        "parallel.compile",
        "does not work with parallel.zero_stage={parallel.zero_stage}, because DeepSpeed's hooks"
        " gather the weights of every layer and break the blocks' graphs: set zero_stage to 2, or"
        " compile to false",
    ),
)
"""Rules for runs under a launcher, which use DeepSpeed."""
EXPERT_RULES = (
    Rule(
        lambda run: isinstance(run.objective, TDMSettings) and run.objective.segments != "separate",
        "objective.segments",
        "compares scores on both sides of the boundary between the teacher's experts, but each"
        " segment belongs to one expert: use 'separate' and match='noisy'",
    ),
    Rule(
        lambda run: run.objective.rollout == "stream" and run.objective.stagger != "none",
        "objective.stagger",
        "spreads the trajectories over both of the teacher's experts, but an iteration trains one"
        " of them: use 'none', or rollout='stop'",
    ),
    Rule(
        _is_adversarial,
        "objective.kind",
        "needs features of one network, but this teacher has two experts: use kind 'tdm'",
    ),
    Rule(
        lambda run: not run.trains_lora,
        "training",
        "needs six whole networks for this teacher with two experts: use 'lora'",
    ),
    Rule(
        lambda run: (
            run.model.idle_expert == "host"
            and (run.model.quantize != "none" or not run.parallel.share_base)
        ),
        "model.idle_expert",
        "requires one unquantized base that all roles share: use model.quantize='none' and"
        " parallel.share_base=true, or 'device'",
    ),
)
"""Rules for teachers with two experts."""
SINGLE_RULES = (
    Rule(
        lambda run: run.model.idle_expert == "host",
        "model.idle_expert",
        "applies to teachers with two experts, but this one has one network: use 'device'",
    ),
    Rule(
        lambda run: run.objective.cfg_2 is not None,
        "objective.cfg_2",
        "applies to a teacher's second expert, but this teacher has one network: omit it"
        " (--set objective.cfg_2=null)",
    ),
    Rule(
        lambda run: any(one.path_2 for one in run.model.adapters),
        "model.adapters",
        "has path_2, the LoRA of a second expert, but this teacher has one network: remove path_2",
    ),
)
"""Rules for teachers with one network."""


def check_settings(config: RunConfig, *, distributed: bool) -> None:
    """Check combinations of settings, and the folders that they name.

    Args:
        config: The run's config.
        distributed: Whether a launcher starts the run.

    Raises:
        ValueError: A rule is broken (the first one is reported), or a folder cannot be used.
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
        config: The run's config.
        split: How the experts share the times; None for a teacher with one network.

    Returns:
        The time from which the teacher calls its first expert; 0 for one network.

    Raises:
        ValueError: A rule is broken; the first one is reported.
    """
    check_rules(config, SINGLE_RULES if split is None else EXPERT_RULES)
    return split.time if split else 0.0


def check_family(config: RunConfig, family: type[Backbone]) -> None:
    """Check that a family supports the attention kernel, and has frames to learn.

    Raises:
        ValueError: It does not.
    """
    if family.takes_images and config.video.frames == 1:
        raise ValueError(
            f"video.frames=1: {family.pipeline_class} is given the first frame, so nothing is left"
            " to learn: use more frames"
        )
    known = ("auto", *family.kernels)
    if config.model.attention not in known:
        raise ValueError(
            f"model.attention={config.model.attention!r} is not supported for"
            f" {family.pipeline_class}: use {', '.join(map(repr, known))}"
        )


def check_folders(config: RunConfig) -> None:
    """Check that a run can create its folders.

    Raises:
        ValueError: A file is in the way.
    """
    for name, path in (
        ("out", config.folder),
        ("prompts.cache", Path(config.prompts.cache)),
        ("real.cache", Path(config.real.cache)),
    ):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(
                f"{name}={str(path)!r}: {there} is a file, so this folder cannot be created: choose"
                " another"
            )
