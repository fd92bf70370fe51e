"""Compare the student's samples with the teacher's many-step samples whenever samples are made.

Results are stored in the run's guard.json, which the report and the export read and a resumed run
continues. The teacher's samples are made once and stored in guard/.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..backbones.autoencode import decode_shown
from ..config import to_dict
from ..data.files import atomic_path
from ..data.items import file_digest
from ..data.progress import progress
from ..diffusion.grid import TimeGrid
from ..diffusion.sampler import ddim
from ..distill.grids import reference_grid
from ..guard.bands import Verdict, judge, not_finite
from ..guard.limits import Prompts, check_settings
from ..guard.measures import latent_distance, measure
from ..guard.record import GUARD, GuardRecord
from ..parallel import collectives
from ..report.page import write_report
from ..roles.guidance import guide
from .endings import CONTINUE
from .run import Run
from .samples import Samples, sample_parts

REFERENCE = "guard/teacher.safetensors"


@dataclass(frozen=True)
class Check:
    """Result of one comparison, the same on all ranks."""

    scalars: dict[str, float]
    """Numbers to log."""
    lines: tuple[str, ...] = ()
    """Warnings that were not given before."""
    stop: str = ""
    """Why the run stops here; "" if it continues."""
    best: bool = False
    """Whether no earlier student was closer to the teacher."""


NOTHING = Check({})


@dataclass(frozen=True)
class Reference:
    """The teacher's side of the comparison. Only rank 0 has it."""

    latents: Tensor
    """Latents [B, ...] on the CPU."""
    measures: dict[str, float]
    untrained: dict[str, float]
    """Measures of the network without LoRA and guidance, sampled with the student's steps."""


class Guard:
    """Compares samples of a run with the teacher's. All ranks call every method together.

    Args:
        run: The run.
        start: Number of completed iterations. Results of later iterations are discarded.
    """

    def __init__(self, run: Run, start: int):
        self.run = run
        self.record = GuardRecord.read(run.config.folder).until(start)
        self._kept = (run.config.folder / GUARD).is_file()
        self._reference: Reference | None = None
        self._prepared = False
        prompts = Prompts(run.order.count, run.world.data_size)
        self._settings = check_settings(run.config, prompts)

    def check_settings(self) -> tuple[str, ...]:
        """Check the settings, before the first iteration.

        Returns:
            What to warn about.
        """
        lines = tuple(f"guard, settings: {finding}" for finding in self._settings)
        self._print(lines)
        return lines

    def check(self, step: int, samples: Samples | None) -> Check:
        """Compare the samples made after `step` iterations with the teacher's.

        Args:
            step: Number of completed iterations.
            samples: The student's samples; None skips the comparison.

        Returns:
            What to log, warn about and do.
        """
        config = self.run.config
        if samples is None or config.guard.action == "off":
            return NOTHING
        if not self._prepared:  # only rank 0 has a reference
            self._reference, self._prepared = self._make_reference(), True
        began, answer = time.perf_counter(), NOTHING
        if self.run.world.primary:
            answer = self._judge(step, samples, began)
        return collectives.broadcast_from_rank0(answer)

    def fail(self, step: int, what: str, reason: str) -> Check:
        """Record what is not finite, which stops a run with any settings.

        Args:
            step: Number of completed iterations.
            what: Subject and verb, e.g. "the samples are".
            reason: Message for the user.

        Returns:
            A check that stops the run.
        """
        if self.run.world.primary:
            verdict = not_finite(what, self.run.config.model.dtype)
            self.record = self.record.with_check(step, {}, verdict, self._digest)
            self.record.write(self.run.config.folder)
            write_report(self.run.config.folder)
        return Check({}, (reason,), stop=reason)

    def note_exported(self, step: int) -> None:
        """Record which student the run exports.

        Args:
            step: Number of iterations after which the student was saved.
        """
        if self.run.world.primary and (self.record.checks or self._kept):
            self.record = replace(self.record, exported=step)
            self.record.write(self.run.config.folder)

    def _judge(self, step: int, samples: Samples, began: float) -> Check:
        assert samples.videos is not None and self._reference is not None
        student = self._measure(samples.latents.cpu(), samples.videos, self._reference.latents)
        patience = self.run.config.guard.patience
        verdict = judge(
            student,
            self._reference.measures,
            untrained=self._reference.untrained if patience else None,
            early=step < patience,
        )
        verdict = replace(verdict, findings=(*self._settings, *verdict.findings))
        known = self.record.open_measures() | {finding.measure for finding in self._settings}
        self.record = self.record.with_check(step, student, verdict, self._digest)
        self.record.write(self.run.config.folder)
        scalars = {f"guard/{name}": value for name, value in verdict.relative.items()}
        scalars |= {
            "guard/distance": verdict.distance,
            "guard/seconds": time.perf_counter() - began,
        }
        lines = tuple(
            f"guard, {step:,} iterations: {finding.of_run}"
            for finding in verdict.findings
            if finding.measure not in known
        )
        self._print(lines)
        return Check(scalars, lines, self._stop(step, verdict), self.record.best == step)

    def _print(self, lines: tuple[str, ...]) -> None:
        for line in lines if self.run.world.primary else ():
            tqdm.write(f"warning: {line}", file=sys.stderr)

    def _stop(self, step: int, verdict: Verdict) -> str:
        """Return why the run stops, if its settings ask for it; else ""."""
        if self.run.config.guard.action != "stop" or not verdict.findings:
            return ""
        write_report(self.run.config.folder)
        first = verdict.findings[0].of_run
        return (
            f"stopped by guard.action='stop' after {step:,} iterations: {first}."
            f" This state is not kept. {CONTINUE}"
        )

    def _make_reference(self) -> Reference | None:
        """Read the teacher's samples from the run's folder, or make them."""
        run, path = self.run, self.run.config.folder / REFERENCE
        key = self._key()
        found = _read_reference(path, key) if run.world.primary else None
        if collectives.broadcast_from_rank0(found is not None):
            return found
        long = reference_grid(run.config, run.backbone.process)
        latents, videos = self._sample_teacher(long, self.cfg)
        base, base_videos = self._sample_teacher(run.grid, 1.0)
        if not run.world.primary:
            return None
        measures = self._measure(latents, videos, latents)
        untrained = self._measure(base, base_videos, latents)
        with atomic_path(path) as part:
            known = {"measures": measures, "untrained": untrained}
            metadata = {"key": key, "known": json.dumps(known)}
            save_file({"latents": latents.contiguous()}, part, metadata=metadata)
        return Reference(latents, measures, untrained)

    def _sample_teacher(self, grid: TimeGrid, cfg: float) -> tuple[Tensor, Tensor]:
        """Return latents of the teacher and, on rank 0, its decoded videos, both on the CPU."""
        run, parts = self.run, sample_parts(self.run)
        network: Any = run.networks["teacher"]  # no discriminator
        teacher = guide(run.config, network, run.null, cfg, boundary=run.grid.boundary)
        name = f"guard: teacher, {grid.steps} steps, cfg {cfg:g} (once per run)"
        with progress(name, total=grid.steps * len(parts)) as bar:
            made = [
                ddim(teacher, part.z, part.cond, grid, on_step=lambda k, x0: bar.update())
                for part in parts
            ]
        latents = torch.cat(made).float().cpu()
        if not run.world.primary:
            return latents, latents.new_empty(0)
        return latents, torch.cat([decode_shown(run.backbone, part) for part in made])

    @property
    def cfg(self) -> float:
        """Guidance scale of the teacher's samples."""
        return self.run.config.guard.cfg or self.run.config.objective.cfg

    @property
    def _digest(self) -> str:
        """Digest of the settings of the teacher's samples."""
        return hashlib.sha256(self._key().encode()).hexdigest()[:12]

    def _key(self) -> str:
        """Return all settings that the teacher's samples depend on, as JSON."""
        config = self.run.config
        log, model, objective = config.log, to_dict(config)["model"], config.objective
        model.pop("idle_expert")  # it does not affect results
        schedule = (*objective.cfg_interval, objective.use_dynamic_cfg, objective.cfg_2)
        items = self.run.gallery_items
        return json.dumps(
            {
                "model": model,
                "adapters": [lora.digest for lora in self.run.adapters],
                "video": to_dict(config)["video"],
                "grid": list(self.run.grid.times),
                "sampling": [self.cfg, log.teacher_steps, log.teacher_shift, log.seed, *schedule],
                "negative": config.prompts.negative,
                "prompts": [item.prompt for item in items],
                "images": [file_digest(item.image) for item in items if item.image],
                "pairs": config.guard.pairs,
            }
        )

    def _measure(self, latents: Tensor, videos: Tensor, reference: Tensor) -> dict[str, float]:
        prompts = [prompt for part in sample_parts(self.run) for prompt in part.prompts]
        distance = latent_distance(latents, reference)
        return measure(videos.float(), prompts) | {"latents": distance}


def _read_reference(path: Path, key: str) -> Reference | None:
    """Read the teacher's samples; None if there are none for these settings."""
    try:
        with safe_open(path, "pt") as file:
            known = file.metadata()
            if known["key"] != key:
                return None
            facts = json.loads(known["known"])
            return Reference(file.get_tensor("latents"), facts["measures"], facts["untrained"])
    except Exception:  # missing or damaged: it is made again
        return None
