"""Which settings cannot be together: what a run and its plan refuse before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ..config import RunConfig
from ..data.latents import real_files


def check_settings(config: RunConfig, *, distributed: bool) -> None:
    """ValueError for settings that cannot be together, or that name what is not there: of a run and
    of its plan.
    """
    check_objective(config, distributed=distributed)
    check_quantize(config, distributed=distributed)
    check_compile(config, distributed=distributed)
    check_folders(config)


def check_objective(config: RunConfig, *, distributed: bool) -> None:
    """ValueError for an objective that cannot run with the rest of the config."""
    objective = config.objective
    adversarial = "discriminator" in objective.roles
    if adversarial and not config.real.path:
        raise ValueError(
            f"objective.kind={objective.kind!r} compares with real clips: name a folder of videos"
            " or images in real.path, or choose kind 'tdm'"
        )
    if adversarial:
        real_files(config.real, frames=config.video.frames)
    if objective.conditioned_on_steps and config.training != "lora":
        raise ValueError(
            "objective.step_set with training='full': the condition on K lives beside an adapter;"
            " use training='lora', or k_condition=false"
        )
    if not (objective.through_scores or adversarial):
        return
    through = f"objective.kind={objective.kind!r} takes a gradient in a network's input"
    if distributed and config.parallel.zero_stage == 3:
        raise ValueError(
            f"{through}, which DeepSpeed cannot with sharded weights: set parallel.zero_stage to 2,"
            " or choose kind 'tdm'"
        )
    if config.parallel.sequence > 1:
        raise ValueError(
            f"{through}, which ranks that share a video cannot yet: set parallel.sequence to 1, or"
            " choose kind 'tdm'"
        )


def check_quantize(config: RunConfig, *, distributed: bool) -> None:
    """ValueError where a quantised base cannot be."""
    if config.model.quantize != "none" and distributed:
        raise ValueError(
            f"model.quantize={config.model.quantize!r} under a launcher: DeepSpeed moves every"
            " parameter, which torchao's tensors do not allow where two networks share them; start"
            " one process without a launcher, or set it to 'none'"
        )


def check_compile(config: RunConfig, *, distributed: bool) -> None:
    """ValueError where blocks cannot be compiled."""
    if config.parallel.compile and distributed and config.parallel.zero_stage == 3:
        raise ValueError(
            "parallel.compile=true with parallel.zero_stage=3: DeepSpeed's hooks gather the weights"
            " of every layer apart, and break the blocks' graphs there; set zero_stage to 2, or"
            " compile to false"
        )


def check_folders(config: RunConfig) -> None:
    """ValueError if a file is where a run writes its folders."""
    for name, path in (
        ("out", config.folder),
        ("prompts.cache", Path(config.prompts.cache)),
        ("real.cache", Path(config.real.cache)),
    ):
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not there.is_dir():
            raise ValueError(
                f"{name}={str(path)!r}: {there} is a file, and a folder is to be there: give"
                " another"
            )
