"""Measure seconds and peak memory of a student and its teacher: text encoder, denoiser,
autoencoder, and a whole call.

With few steps the autoencoder can take most of the time, so the speed-up of the whole is far below
the ratio of network calls. Both are therefore printed. "All" is the sum of the stages. "End to end"
is one call of the stock pipeline from prompt to video with everything on the device. If the two
differ, the table says so.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..adapters.bundle import read_facts
from ..backbones.base import Backbone
from ..data.progress import progress
from ..sampling.shots import noise
from ..sampling.student import use_student

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
STAGES = ("text", "denoiser", "autoencoder")
AGREE = 0.1
"""Relative difference between a whole call and the sum of its stages below which it is not
mentioned.
"""


@dataclass(frozen=True)
class Stage:
    """Median, minimum and maximum seconds of repeated calls, and their peak memory in bytes.

    Memory is that of the GPU, or of the process on a CPU; None if the system does not report it.
    """

    seconds: float
    fastest: float
    slowest: float
    peak: int | None


def measure(call: Callable[[], object], device: torch.device, *, repeats: int) -> Stage:
    """Time a function after one untimed warm-up call, which loads weights and selects kernels.

    Args:
        call: The function.
        device: Device it runs on.
        repeats: Number of timed calls.

    Returns:
        Seconds and peak memory.

    Raises:
        ValueError: `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: must be at least 1")
    call()
    known, seconds = _reset_peak(device), []
    for _ in range(repeats):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return Stage(
        statistics.median(seconds), min(seconds), max(seconds), _peak(device) if known else None
    )


def time_samplers(
    backbone: Backbone, student: Path, prompts: list[str], *, steps: int, cfg: float, repeats: int
) -> dict:
    """Time a student and its teacher on one batch.

    Args:
        backbone: The teacher's model family.
        student: Folder of the student.
        prompts: Prompts of the batch.
        steps: Steps of the teacher. The student's are in its export.json.
        cfg: Guidance scale of the teacher.
        repeats: Number of timed calls.

    Returns:
        Result of `compare`, with the machine, the model and the size that were timed.

    Raises:
        ValueError: The student does not state its number of steps.
    """
    trained = read_facts(student).get("steps")
    if not trained:
        raise ValueError(
            f"{student} does not state its number of steps: export it again with `tdmvid export`"
        )
    samplers: dict[str, tuple[Path | None, int, float]] = {
        "teacher": (None, steps, cfg),
        "student": (student, trained, 1.0),
    }
    timed, whole = {}, {}
    with progress("timing", total=2 * len(samplers), unit="pipeline") as bar:
        for name, (folder, k, scale) in samplers.items():
            timed[name] = stages(backbone, folder, prompts, steps=k, cfg=scale, repeats=repeats)
            bar.update()
        for name, (folder, k, scale) in samplers.items():
            whole[name] = end_to_end(backbone, folder, prompts, steps=k, cfg=scale, repeats=repeats)
            bar.update()
    calls = {"teacher": steps * (1 if cfg == 1 else 2), "student": trained}
    return compare(timed, calls, whole) | {
        "machine": f"{_device(backbone.device)}; torch {torch.__version__}, {platform.platform()}",
        "model": asdict(backbone.config),
        "video": asdict(backbone.size),
        "batch": len(prompts),
    }


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def stages(
    backbone: Backbone,
    student: Path | None,
    prompts: list[str],
    *,
    steps: int,
    cfg: float,
    repeats: int,
) -> dict[str, Stage]:
    """Time every stage of one sampler separately. The result of a stage is computed once for the
    next.

    For models that take a first frame, encoding a grey one counts as text.

    Args:
        backbone: The teacher's model family.
        student: Folder of the student; None times the teacher.
        prompts: Prompts of the batch.
        steps: Number of steps.
        cfg: Guidance scale; 1 for none.
        repeats: Number of timed calls.

    Returns:
        Seconds and memory by stage.
    """
    device, texts = backbone.device, prompts if cfg == 1 else [*prompts, ""]
    images = backbone.blank_images(len(prompts)) if backbone.takes_images else None

    def encode() -> None:
        backbone.encode_prompts(texts)
        if images is not None:
            backbone.encode_images(images)

    timed = {"text": measure(encode, device, repeats=repeats)}
    cond = backbone.encode_items(prompts, images).to(device)
    null = None if cfg == 1 else backbone.encode_prompts([""]).to(device)
    backbone.release_text()
    pipeline = use_student(backbone, student)
    z = torch.stack(
        [noise(prompt, index, backbone.latent_shape()) for index, prompt in enumerate(prompts)]
    ).to(device)

    def denoise() -> torch.Tensor:
        return backbone.stock.latents(pipeline, z, cond, steps=steps, cfg=cfg, null=null)

    timed["denoiser"] = measure(denoise, device, repeats=repeats)
    latents = denoise()
    timed["autoencoder"] = measure(lambda: backbone.decode(latents), device, repeats=repeats)
    return timed


def end_to_end(
    backbone: Backbone,
    student: Path | None,
    prompts: list[str],
    *,
    steps: int,
    cfg: float,
    repeats: int,
) -> Stage:
    """Time a whole call of the stock pipeline as a user makes it, from prompts to decoded samples.

    Args:
        backbone: The teacher's model family.
        student: Folder of the student; None times the teacher.
        prompts: Prompts of the batch.
        steps: Number of steps.
        cfg: Guidance scale; 1 for none.
        repeats: Number of timed calls.

    Returns:
        Seconds and memory of the call.
    """
    pipeline = use_student(backbone, student, whole=True)
    images = backbone.blank_images(len(prompts)) if backbone.takes_images else None
    return measure(
        lambda: backbone.stock.videos(pipeline, prompts, steps=steps, cfg=cfg, images=images),
        backbone.device,
        repeats=repeats,
    )


def compare(
    timed: dict[str, dict[str, Stage]], calls: dict[str, int], whole: dict[str, Stage]
) -> dict:
    """Compute sums, shares and speed-ups.

    Args:
        timed: Stages by sampler ("teacher", "student").
        calls: Network calls by sampler.
        whole: End-to-end call by sampler.

    Returns:
        Both samplers' times, and how many times faster the student is.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, parts in timed.items():
        total = sum(stage.seconds for stage in parts.values())
        rows[name] = {
            "network_calls": calls[name],
            "seconds": total,
            "peak": max((stage.peak for stage in parts.values() if stage.peak), default=None),
            "stages": {
                key: asdict(stage) | {"share": stage.seconds / total}
                for key, stage in parts.items()
            },
            "end_to_end": asdict(whole[name]),
            "unexplained": whole[name].seconds / total - 1,
        }
    teacher, student = timed["teacher"], timed["student"]
    faster = {key: teacher[key].seconds / student[key].seconds for key in STAGES} | {
        "all": rows["teacher"]["seconds"] / rows["student"]["seconds"],
        "end_to_end": whole["teacher"].seconds / whole["student"].seconds,
    }
    return {"samplers": rows, "faster": faster, "fewer_calls": calls["teacher"] / calls["student"]}


def table(found: dict, batch: int) -> str:
    """Format the result of `compare` as a Markdown table.

    Args:
        found: Result of `compare`.
        batch: Number of videos in the batch that was timed.

    Returns:
        Seconds per video, shares and peak memory, with a note if a whole call and the sum of its
        stages differ.
    """
    lines = [
        (
            "| seconds per video | text | denoiser | autoencoder | all | end to end | network calls"
            " | peak memory |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["samplers"].items():
        cells = [
            f"{part['seconds'] / batch:.3g} ({100 * part['share']:.0f} %)"
            for part in row["stages"].values()
        ]
        cells += [
            f"{seconds / batch:.3g}" for seconds in (row["seconds"], row["end_to_end"]["seconds"])
        ]
        peaks = [peak for peak in (row["peak"], row["end_to_end"]["peak"]) if peak is not None]
        peak = " / ".join(f"{peak / 2**30:.2f}" for peak in peaks) + " GiB" if peaks else "unknown"
        lines.append(f"| {name} | {' | '.join(cells)} | {row['network_calls']} | {peak} |")
    faster = [f"{found['faster'][key]:.1f} x" for key in (*STAGES, "all", "end_to_end")]
    lines += [
        f"| faster by | {' | '.join(faster)} | {found['fewer_calls']:.1f} x fewer | stage / whole"
        " call |"
    ]
    for name, row in found["samplers"].items():
        if abs(row["unexplained"]) > AGREE:
            more = (
                f"{100 * abs(row['unexplained']):.0f} %"
                f" {'more' if row['unexplained'] > 0 else 'less'}"
            )
            lines.append(
                f"\nThe {name}'s whole call takes {more} than its stages together: use the"
                " end-to-end figures."
            )
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> bool:
    """Reset the peak memory. Returns whether the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5")  # Linux: resets the peak of this process
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
