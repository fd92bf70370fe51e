"""The guidance of a run's teacher, as the config has it."""

from __future__ import annotations

from ..backbones.base import Backbone
from ..config import RunConfig
from ..diffusion.denoiser import Cond, Denoiser, Guided
from ..diffusion.guidance import GuidanceSchedule


def guide(
    config: RunConfig,
    denoiser: Denoiser,
    null: Cond,
    cfg: float | None = None,
    *,
    boundary: float = 0.0,
) -> Guided:
    """Return the guided teacher.

    Args:
        config: whose `objective` sets the guidance.
        denoiser: the unguided teacher.
        null: the condition of the other branch, of one sample.
        cfg: another scale than `objective.cfg`; 1 leaves out `cfg_2`, too.
        boundary: the time below which a teacher's second expert is called; 0 of one network.
    """
    objective = config.objective
    low, high = objective.cfg_interval
    steps = config.log.teacher_steps if objective.use_dynamic_cfg else 0
    scale = objective.cfg if cfg is None else cfg
    second = None if scale == 1 else objective.cfg_2
    return Guided(denoiser, null, scale, GuidanceSchedule(low, high, steps, boundary, second))


def check_guidance(config: RunConfig, family: type[Backbone]) -> None:
    """Check that the stock call of a family has the guidance.

    Raises:
        ValueError: it has not.
    """
    if config.objective.use_dynamic_cfg and not family.dynamic_guidance:
        raise ValueError(
            f"objective.use_dynamic_cfg=true: {family.pipeline_class} has no such argument: leave"
            " it out, or use objective.cfg_interval"
        )
