"""Finish a run: export the student, check it in a stock pipeline, write the gallery and the
report.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from torch import Tensor

from ..adapters.bundle import folders_of_set, student_folder
from ..adapters.lora import in_host_memory
from ..config import to_dict
from ..data.progress import progress
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import ddim
from ..distill.grids import reference_grid
from ..export.bundle import write_bundles
from ..export.student import Adapter, Provenance, Reference, Student, describe_method, with_merged
from ..guard.record import GuardRecord
from ..parallel import collectives
from ..report.gallery import Column, write_gallery
from ..report.page import write_report
from ..roles.rounding import difference, story
from .run import Run, on_whole_base
from .samples import fixed_noise, sample_student


def finalize(run: Run) -> None:
    """Write the export, the gallery and the report of a run.

    The export is `lora/`, or `student/` with full training. The gallery is `gallery/`, the report
    `report.html`.

    Args:
        run: The trained run.
    """
    z = fixed_noise(run, run.gallery.batch)
    weights = run.engines["student"].weights(averaged=True, everywhere=False)
    student = _sample_student(run, z)
    deployed = _sample_deployed(run, z, weights)
    teachers = [_sample_teacher(run, z, grid) for grid in _teacher_grids(run)]
    # All ranks must leave NCCL together: a rank that leaves early waits there for the others and
    # may be killed for it.
    with collectives.first_alone():
        if run.world.primary:
            try:
                _export(run, weights, deployed, z)
            finally:  # the gallery and report are useful even if the export fails its check
                folder, items = run.config.folder, run.gallery_items
                write_gallery(
                    folder / "gallery", teachers, student, backbone=run.backbone, items=items
                )
                if verdict := GuardRecord.read(folder).summary():
                    print(verdict)
                print(f"report: {write_report(folder)}")


def _export(
    run: Run, weights: dict[str, Tensor], deployed: dict[TimeGrid, Tensor], z: Tensor
) -> None:
    """Write the student of each number of steps K. `deployed` holds its samples, by grid."""
    lora = run.config.training == "lora"
    folder, record = run.config.folder, GuardRecord.read(run.config.folder)
    method = describe_method(run.config.objective)
    origin = f"{method}{story(folder)}{record.story(record.exported, run.config.steps)}"
    provenance = Provenance(to_dict(run.config), origin=origin)
    reference = Reference(z, run.gallery, tuple(run.gallery_items))
    grids = list(deployed) if lora else [run.grid]
    out = student_folder(folder, run.config.training)
    students = {
        place: Student(
            run.backbone,
            grid,
            weights,
            reference,
            deployed[grid],
            Adapter(run.engines["student"].module, run.config.lora) if lora else None,
            provenance,
            adapters=run.adapters,
        )
        for place, grid in zip(folders_of_set(out, grids, run.grid), grids, strict=True)
    }
    with base_waiting(run):
        written = write_bundles(with_merged(students))
    for bundle, facts in written.items():
        print(
            f"{bundle.name}: {bundle}, reloaded in a stock pipeline: relative difference"
            f" {facts['error']:.1e}"
        )


def _sample_student(run: Run, z: Tensor) -> Column:
    """Sample the gallery's column of the student, with the solver it was trained with."""
    steps: dict[int, Tensor] = {}
    latents = sample_student(run, z, run.gallery, on_step=steps.__setitem__)
    path = {k: x0[:1] for k, x0 in steps.items()}
    return Column(f"student, {run.grid.steps} steps", run.grid.steps, latents, run.grid, path)


def _sample_deployed(run: Run, z: Tensor, weights: dict[str, Tensor]) -> dict[TimeGrid, Tensor]:
    """Sample the student as users run it: by DDIM on the unquantized base, for each grid, [B, ...]
    each.

    The export is checked against these samples.
    """
    trained = _sample_grids(run, z)
    if run.rounding is None:
        return trained
    with base_waiting(run):
        deployed = _sample_grids(on_whole_base(run, weights), z)
    moved = difference(trained[run.grid], deployed[run.grid])
    replace(run.rounding, student=moved).save(run.config.folder)
    print(
        f"student: its latents on the unquantized base differ by {moved:.2%} from those on the base"
        f" in {run.rounding.kind}"
    )
    return deployed


def _sample_grids(run: Run, z: Tensor) -> dict[TimeGrid, Tensor]:
    return {
        grid: sample_student(run, z, run.gallery, grid=grid, solver="ddim") for grid in run.grids
    }


def _teacher_grids(run: Run) -> tuple[TimeGrid, TimeGrid]:
    """Return the many-step reference grid and the student's own grid."""
    return reference_grid(run.config, run.backbone.process), run.grid


def _sample_teacher(run: Run, z: Tensor, grid: TimeGrid) -> Column:
    """Sample the gallery's column of the guided teacher over a grid, and keep about eight of its
    steps.
    """
    cfg, steps = run.config.objective.cfg, dict[int, Tensor]()
    name = f"teacher, {grid.steps} steps"
    with progress(name, total=grid.steps) as bar:

        def keep(k: int, x0: Tensor) -> None:
            steps[k] = x0[:1]
            bar.update()

        latents = ddim(run.roles.teacher, z, run.gallery, grid, on_step=keep)
    shown = sorted(steps, reverse=True)[:: max(1, grid.steps // 8)]
    path = {k: steps[k] for k in shown}
    if not run.config.objective.guided:
        return Column(name, grid.steps, latents, grid, path)
    second = run.config.objective.cfg_2
    scales = f"{cfg:g}" if second is None else f"{cfg:g} and {second:g}"
    return Column(f"{name}, cfg {scales}", 2 * grid.steps, latents, grid, path)


def base_waiting(run: Run) -> AbstractContextManager:
    """Keep the run's frozen weights in CPU memory while another base is on the device.

    The run's networks must not be called within this context.

    Args:
        run: The run whose weights are moved.

    Returns:
        A context manager.
    """
    return in_host_memory(
        [run.backbone.network, *(engine.module for engine in run.engines.values())]
    )
