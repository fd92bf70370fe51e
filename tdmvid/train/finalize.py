"""After the last step: the LoRA, checked in a stock pipeline, the gallery, the report."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..adapters.lora import in_host_memory
from ..config import to_dict
from ..data.files import write_json
from ..data.video import few_frames, write_image, write_strip
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import ddim
from ..distill.grids import reference_grid
from ..export.bundle import export_lora, export_network, replacing
from ..export.card import Story
from ..parallel import launch
from ..report.page import write_report
from ..roles.rounding import difference, story
from .run import Run, on_whole_base
from .samples import fixed_noise, sample_student, write_clips


def finish(run: Run) -> None:
    """Write lora/ (or student/, of three whole networks), gallery/ and report.html of a trained
    run.
    """
    z = fixed_noise(run, run.gallery.batch)
    student_steps: dict[int, Tensor] = {}
    expected = sample_student(run, z, run.gallery, on_step=student_steps.__setitem__)
    weights = run.engines["student"].weights(averaged=True, everywhere=False)
    deployed = _deployed(run, z, weights)
    gallery = _Gallery(run, z)
    gallery.student(expected, student_steps)
    gallery.teacher()
    # ranks leave NCCL together: one that leaves early may wait there for the others, and be ended
    # for it
    with launch.first_alone():
        if run.world.primary:
            try:
                _export(run, weights, deployed, z)
            finally:  # an export that fails its check leaves all else to look at
                gallery.write()
                print(f"report: {write_report(run.config.folder)}")


def _export(
    run: Run, weights: dict[str, Tensor], deployed: dict[TimeGrid, Tensor], z: Tensor
) -> None:
    common = {
        "backbone": run.backbone,
        "weights": weights,
        "z": z,
        "cond": run.gallery,
        "story": Story(
            to_dict(run.config),
            origin=Story.origin + story(run.config.folder),
            prompts=tuple(run.gallery_prompts),
        ),
    }
    if run.config.training != "lora":
        with base_waiting(run):
            error = export_network(
                run.config.folder / "student", grid=run.grid, expected=deployed[run.grid], **common
            )
        print(
            f"student: {run.config.folder / 'student'}, reloaded in a stock pipeline: relative"
            f" difference {error:.1e}"
        )
        return
    module, settings = run.engines["student"].module, run.config.lora
    folders = {
        grid: run.config.folder / ("lora" if grid == run.grid else f"lora_{grid.steps}steps")
        for grid in deployed
    }
    with base_waiting(run), replacing(*folders.values()) as together:
        for grid, latents in deployed.items():
            facts = export_lora(
                together / folders[grid].name,
                module=module,
                settings=settings,
                grid=grid,
                expected=latents,
                **common,
            )
            print(
                f"lora: {folders[grid]}, reloaded in a stock pipeline: relative difference"
                f" {facts['error']:.1e}"
            )


def _deployed(run: Run, z: Tensor, weights: dict[str, Tensor]) -> dict[TimeGrid, Tensor]:
    """What users get from each grid, and what an export is checked against: by DDIM, whatever the
    solver of training, on the whole base.
    """
    samples = lambda run: {
        grid: sample_student(run, z, run.gallery, grid=grid, solver="ddim") for grid in run.grids
    }  # noqa: E731
    trained = samples(run)
    if run.rounding is None:
        return trained
    with base_waiting(run):
        deployed = samples(on_whole_base(run, weights))
    moved = difference(trained[run.grid], deployed[run.grid])
    replace(run.rounding, student=moved).save(run.config.folder)
    print(
        f"student: on the whole base its latents are {moved:.2%} from those on the base in"
        f" {run.rounding.kind}"
    )
    return deployed


def base_waiting(run: Run) -> AbstractContextManager:
    """The run's frozen weights are in host memory while another base is on the device; nobody may
    call its networks meanwhile.
    """
    return in_host_memory(
        [run.backbone.network, *(engine.module for engine in run.engines.values())]
    )


class _Gallery:
    """Teacher and student side by side from the same noise, and their clean predictions along the
    way.
    """

    def __init__(self, run: Run, z: Tensor):
        self.run, self.z = run, z
        self.columns: list[tuple[str, int, Tensor]] = []
        self.paths: list[tuple[str, list[str], list[Tensor]]] = []

    def student(self, latents: Tensor, steps: dict[int, Tensor]) -> None:
        grid = self.run.grid
        self.columns.append((f"student, {grid.steps} steps", grid.steps, latents))
        self._path(f"student, {grid.steps} steps", grid, steps, list(steps))

    def teacher(self) -> None:
        """The long reference and the student's own grid, both guided."""
        cfg, grid = self.run.config.objective.cfg, self.run.grid
        long = reference_grid(self.run.config, self.run.backbone.process)
        calls = 1 if cfg == 1 else 2
        for position, times in enumerate((long, grid)):
            steps: dict[int, Tensor] = {}
            latents = self._sample(times, steps)
            name = f"teacher, {times.steps} steps" + (f", cfg {cfg:g}" if calls == 2 else "")
            self.columns.insert(position, (name, calls * times.steps, latents))
            shown = sorted(steps, reverse=True)[:: max(1, times.steps // 8)]
            self._path(name, times, steps, shown)

    def _sample(self, times: TimeGrid, steps: dict[int, Tensor]) -> Tensor:
        teacher = self.run.roles.teacher
        with tqdm(
            total=times.steps,
            desc=f"teacher, {times.steps} steps",
            disable=not self.run.world.primary,
        ) as bar:

            def seen(k: int, x0: Tensor) -> None:
                steps[k] = x0[:1]
                bar.update()

            return ddim(teacher, self.z, self.run.gallery, times, on_step=seen)

    def _path(self, name: str, times: TimeGrid, steps: dict[int, Tensor], shown: list[int]) -> None:
        process = self.run.backbone.process
        labels = [f"t = {process.timestep(torch.tensor([times.times[k]])).item():g}" for k in shown]
        self.paths.append((name, labels, [steps[k][:1] for k in shown]))

    def write(self) -> None:
        run, folder = self.run, self.run.config.folder / "gallery"
        columns, decoded = [], []
        for index, (name, nfe, latents) in enumerate(self.columns):
            videos = run.backbone.decode(latents).cpu()
            decoded.append(few_frames(videos))
            columns.append(
                {
                    "name": name,
                    "nfe": nfe,
                    "videos": write_clips(folder / str(index), videos, run.config.video.fps),
                }
            )
        write_strip(
            folder / "comparison.png", torch.stack(decoded, 1).flatten(0, 1), group=len(decoded)
        )  # prompt by prompt
        rows = []
        for index, (name, labels, latents) in enumerate(self.paths):
            images = [f"path/{index}_{i}.png" for i in range(len(latents))]
            for image, x0 in zip(images, latents):
                video = run.backbone.decode(x0)[0]
                write_image(folder / image, video[:, video.shape[1] // 2])
            rows.append({"name": name, "labels": labels, "images": images})
        write_json(folder / "gallery.json", {"prompts": run.gallery_prompts, "columns": columns})
        write_json(folder / "trajectories.json", {"prompt": run.gallery_prompts[0], "rows": rows})
