"""Apply the config's guidance to a teacher."""

from __future__ import annotations

from ..backbones.base import Backbone, NetworkDenoiser
from ..config import RunConfig
from ..diffusion.denoiser import Cond, Guided
from ..diffusion.guidance import GuidanceSchedule


def guide(
    config: RunConfig,
    denoiser: NetworkDenoiser,
    null: Cond,
    cfg: float | None = None,
    *,
    boundary: float = 0.0,
) -> Guided:
    """Return the teacher with classifier-free guidance, combined as by its stock pipeline.

    Args:
        config: Its `objective` sets the guidance.
        denoiser: The unguided teacher.
        null: Condition of the unconditional branch, one row.
        cfg: Guidance scale to use instead of `objective.cfg`; 1 also ignores `cfg_2`.
        boundary: Time below which a teacher's second expert is called; 0 for one network.
    """
    objective = config.objective
    low, high = objective.cfg_interval
    steps = config.log.teacher_steps if objective.use_dynamic_cfg else 0
    scale = objective.cfg if cfg is None else cfg
    second = None if scale == 1 else objective.cfg_2
    schedule = GuidanceSchedule(low, high, steps, boundary, second)
    return Guided(denoiser, null, scale, schedule, denoiser.backbone.combine)


def check_guidance(config: RunConfig, family: type[Backbone]) -> None:
    """Check that the family's stock pipeline supports the guidance settings.

    Raises:
        ValueError: It does not support `use_dynamic_cfg`, or its network reads no guidance scale.
    """
    if config.model.guidance is not None and family.embedded_guidance is None:
        raise ValueError(
            f"model.guidance={config.model.guidance:g}: the network of {family.pipeline_class}"
            " reads no guidance scale; omit it, and set objective.cfg"
        )
    if config.objective.use_dynamic_cfg and not family.dynamic_guidance:
        raise ValueError(
            f"objective.use_dynamic_cfg=true: {family.pipeline_class} does not support it; omit it,"
            " or use objective.cfg_interval"
        )
