"""Plan a run: check its settings and count its calls, without weights, a GPU or another rank.

Only the teacher's config files are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..backbones.base import Backbone
from ..backbones.registry import find_family
from ..backbones.spec import Tokens
from ..config import RunConfig, share_batch
from ..data.items import MANIFEST, read_run_items
from ..data.prompts import read_training_prompts
from ..distill.grids import build_grids, reference_grid
from ..distill.trajectories import count_swaps
from ..parallel.launch import check_sequence
from ..roles.rules import check_family, check_settings, check_teacher
from .calls import calls_per_iteration
from .counts import (
    Calls,
    Pipeline,
    Weights,
    count_calls,
    count_pipeline,
    decoded_settings,
    outline_networks,
    traced_settings,
    weighed_settings,
)
from .plan import Plan

STAGES = 3
"""How often a plan without a similar one calls `progress`."""


def make_plan(
    config: RunConfig,
    *,
    ranks: int = 1,
    like: Plan | None = None,
    launched: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> Plan:
    """Plan a run on `ranks` ranks.

    Args:
        config: Settings of the run.
        ranks: Number of ranks.
        like: Plan of a similar run. Parts whose settings are equal are reused instead of traced
            again.
        launched: Whether a launcher starts the run even with one rank.
        progress: Called after each stage of the counting, `STAGES` times at most.

    Returns:
        The plan.

    Raises:
        ValueError: The run itself would reject its settings.
    """
    check_sequence(config.parallel.sequence, ranks)
    check_backend(config, ranks)
    config = share_batch(config, ranks // config.parallel.sequence)
    folder, family = find_family(config.model, weights=False)
    check_settings(config, distributed=ranks > 1 or config.parallel.offload != "none")
    swaps = _check_grids(config, folder, family)
    prompts = _count_prompts(config, takes_images=family.takes_images)
    tokens, weights, calls, pipeline = _counted(config, folder, family, like, progress)
    return Plan(
        config=config,
        ranks=ranks,
        folder=folder,
        pipeline_class=family.pipeline_class,
        prompts=prompts,
        tokens=tokens,
        weights=weights,
        calls=calls,
        pipeline=pipeline,
        swaps=swaps,
        launched=launched,
    )


def check_backend(config: RunConfig, ranks: int) -> None:
    """Check that the backend of a run supports its number of ranks.

    Args:
        config: Settings of the run.
        ranks: Number of ranks.

    Raises:
        ValueError: It does not.
    """
    if config.parallel.backend == "none" and ranks > 1:
        raise ValueError(
            f"parallel.backend='none' trains on one rank, not on {ranks}: use 'auto', or plan for"
            " one rank"
        )


def _count_prompts(config: RunConfig, *, takes_images: bool) -> int:
    """Return the number of prompts of the run. Images that are generated from them later may be
    missing.

    Raises:
        ValueError: The model takes images, and a prompt has none.
    """
    images = config.prompts.images
    if images and not (Path(images) / MANIFEST).is_file():
        return len(read_training_prompts(config.prompts))
    return len(read_run_items(config, takes_images=takes_images)[0])


def _counted(
    config: RunConfig,
    folder: Path,
    family: type[Backbone],
    like: Plan | None,
    progress: Callable[[], object],
) -> tuple[Tokens, Weights, Calls, Pipeline]:
    """Return what a similar plan has already counted, and count the rest."""

    def same(settings: Callable[[RunConfig], object]) -> Plan | None:
        return like if like and settings(like.config) == settings(config) else None

    weighed, traced, decoded = map(same, (weighed_settings, traced_settings, decoded_settings))
    if weighed and traced and decoded:
        return weighed.tokens, weighed.weights, _called(traced.calls, config), decoded.pipeline
    networks = outline_networks(config, folder, family)
    progress()
    calls = _called(traced.calls, config) if traced else count_calls(networks)
    progress()
    pipeline = decoded.pipeline if decoded else count_pipeline(networks)
    progress()
    return networks.tokens, networks.weights, calls, pipeline


def _called(calls: Calls, config: RunConfig) -> Calls:
    """Return the same calls in the numbers that this run makes."""
    forwards, backwards = calls_per_iteration(config)
    return replace(calls, forwards=forwards, backwards=backwards)


def _check_grids(config: RunConfig, folder: Path, family: type[Backbone]) -> float:
    """Return how often an iteration swaps the expert on the device.

    Raises:
        ValueError: The teacher's process does not have the times of the student's grid, or of the
            teacher's many-step samples.
    """
    process, split = family.spec.read_process(folder), family.spec.read_split(folder)
    boundary = check_teacher(config, split)
    check_family(config, family)
    grid, *_ = build_grids(config.grid, process, config.objective.step_set, boundary)
    reference_grid(config, process)
    if config.model.idle_expert == "device":
        return 0.0
    return count_swaps(grid, config.objective, config.batch.accumulation)
