"""Compare the student in K calls with its teacher in 50 guided steps: speed-up of the denoiser
relative to linear, and end to end.

    python -m benchmarks.sampling
    python -m benchmarks.sampling --batch 1 16 --set model.dtype=float32 --json sampling.json
    python -m benchmarks.sampling --network cogvideox2b --batch 1
    python -m benchmarks.sampling --network cogvideox2b --layers 2 --batch 1 --steps 10 \
        --set video.frames=9 --set video.height=256 --set video.width=256

By default: the embedded teacher, with one and with eight videos at a time. A full CogVideoX-2B
(with random weights) needs a GPU; two of its layers in their real width run on a CPU.

The samplers are stock pipelines that run alternately in one process. (`tdmvid latency` instead
takes a finished run and times each stage separately.) The student's weights are random, exported as
a LoRA and as a fused network; time does not depend on their values. "Of linear" is the speed-up of
the denoiser divided by the ratio of network evaluations. "All" includes text encoder and
autoencoder and is only measured for the embedded teacher.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from benchmarks.iteration import NETWORKS, prepare
from benchmarks.options import parse
from benchmarks.stopwatch import alternate, report
from benchmarks.untrained import Stage, build_stage, text_like
from tdmvid.backbones.base import Backbone
from tdmvid.backbones.registry import load_backbone
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import RunConfig
from tdmvid.diffusion.sampler import ddim
from tdmvid.distill.grids import build_grid
from tdmvid.export.bundle import write_bundles
from tdmvid.export.request import ExportRequest
from tdmvid.export.student import Adapter, Reference, Student
from tdmvid.parallel import launch
from tdmvid.sampling.student import use_student

PROMPT = "a red ring moving left and a blue square moving up"
HEAD = [
    "videos at a time",
    "sampler",
    "evaluations",
    "denoiser, s a video",
    "ms an evaluation",
    "denoiser faster by",
    "of linear",
    "all faster by",
]


def export_students(stage: Stage, folder: Path) -> dict[str, Path]:
    """Export a student with a random adapter as a LoRA and as a fused network.

    Args:
        stage: Networks of the run.
        folder: Folder to write to.

    Returns:
        Exported folders by name.
    """
    engine = stage.engines["student"]
    for index, tensor in enumerate(engine.trainable.values()):
        tensor.data = 0.02 * torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(index)
        ).to(tensor.device)
    z = torch.randn(1, *stage.shape[1:], generator=torch.Generator().manual_seed(0)).to(
        stage.backbone.device
    )
    cond = text_like(stage.backbone, 1, 0)
    student = Student(
        stage.backbone,
        stage.grid,
        engine.weights(averaged=False),
        Reference(z, cond),
        ddim(stage.roles.student, z, cond, stage.grid),
        Adapter(engine.module, stage.config.lora),
    )
    write_bundles({folder / "lora": student})
    write_bundles({folder / "fused": student}, ExportRequest(fuse=True))
    return {"student, LoRA": folder / "lora", "student, fused": folder / "fused"}


def compare(
    config: RunConfig,
    world: launch.World,
    batches: list[int],
    *,
    steps: int,
    repeats: int,
    random: bool,
) -> list[list[object]]:
    """Time the samplers.

    Args:
        config: The run.
        world: Processes of the run.
        batches: Numbers of videos at a time.
        steps: Steps of the teacher.
        repeats: Number of timed rounds.
        random: Whether the teacher has random weights. Text encoder and autoencoder are then left
            out.

    Returns:
        One row per batch and sampler, with the columns of `HEAD`.
    """
    grid = build_grid(config.grid, load_backbone(config.model, config.video).process)
    cfg = config.objective.cfg
    evaluations = {
        "teacher": steps * (1 if cfg == 1 else 2),
        "student, LoRA": grid.steps,
        "student, fused": grid.steps,
    }
    with TemporaryDirectory() as folder:
        folders = {"teacher": None, **export_students(build_stage(config, world), Path(folder))}
        backbone = load_backbone(config.model, config.video, device=world.device)
        pipelines = {name: use_student(backbone, path) for name, path in folders.items()}
        rows = []
        for batch in batches:
            timed = _samplers(backbone, pipelines, batch, few=grid.steps, steps=steps, cfg=cfg)
            if not random:
                timed |= _ends(backbone, batch)
            clocks = alternate(timed, repeats=repeats, device=world.device)
            seconds = {name: clock.seconds for name, clock in clocks.items()}
            rows += [_row(name, batch, evaluations, seconds) for name in pipelines]
    return rows


def _noise(backbone: Backbone, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *backbone.latent_shape(), generator=generator).to(backbone.device)


def _samplers(
    backbone: Backbone,
    pipelines: dict[str, DiffusionPipeline],
    batch: int,
    *,
    few: int,
    steps: int,
    cfg: float,
) -> dict[str, Callable[[int], Tensor]]:
    """Return functions that sample a batch of latents, by sampler.

    Args:
        few: Steps of a student.
        steps: Steps of the teacher, with guidance scale `cfg`.
    """
    cond, null = text_like(backbone, batch, 1), text_like(backbone, 1, 0)
    z = _noise(backbone, batch)
    options: dict[str, dict[str, Any]] = {name: {"steps": few} for name in pipelines}
    options["teacher"] = {"steps": steps, "cfg": cfg, "null": null}

    def sampler(name: str) -> Callable[[int], Tensor]:
        return lambda turn: backbone.stock.latents(pipelines[name], z, cond, **options[name])

    return {name: sampler(name) for name in pipelines}


def _ends(backbone: Backbone, batch: int) -> dict[str, Callable[[int], object]]:
    """Return the stages around the denoiser: `text` of a student, `texts` of guided sampling,
    `autoencoder`.
    """
    prompts, z = [PROMPT] * batch, _noise(backbone, batch)
    return {
        "text": lambda turn: backbone.encode_prompts(prompts),
        "texts": lambda turn: backbone.encode_prompts([*prompts, ""]),
        "autoencoder": lambda turn: backbone.decode(z),
    }


def _row(
    name: str, batch: int, evaluations: dict[str, int], seconds: dict[str, float]
) -> list[object]:
    """Return a row of the table. `seconds` has the times of all denoisers and of the stages around
    them.
    """
    known = "autoencoder" in seconds

    def whole(one):
        return (
            seconds[one] + seconds["texts" if one == "teacher" else "text"] + seconds["autoencoder"]
        )

    faster, linear = seconds["teacher"] / seconds[name], evaluations["teacher"] / evaluations[name]
    return [
        batch,
        name,
        evaluations[name],
        seconds[name] / batch,
        1000 * seconds[name] / batch / evaluations[name],
        faster,
        f"{100 * faster / linear:.0f} %",
        whole("teacher") / whole(name) if known else "-",
    ]


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", choices=[*NETWORKS], default="shapes", help="network to sample with"
    )
    parser.add_argument(
        "--layers", type=int, default=0, help="number of transformer blocks; 0 for all"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting of the run",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="videos at a time")
    parser.add_argument("--steps", type=int, default=50, help="steps of the teacher")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed rounds")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("cache/untrained"),
        help="folder for random weights, which are written once",
    )
    parser.add_argument("--json", type=Path, help="add the results to this file")
    return parse(parser)


def main() -> None:
    """Compare the samplers of a network."""
    args = arguments()
    torch.set_num_threads(1)
    world = launch.start("none")
    config = prepare(args.network, args.work, args.set, whole=True, layers=args.layers)
    rows = compare(
        config,
        world,
        args.batch,
        steps=args.steps,
        repeats=args.repeats,
        random=args.network != "shapes",
    )
    size = f", {args.layers} blocks" if args.layers else ""
    title = (
        f"{args.network}{size}: {config.model.dtype}, {config.grid.steps} steps against"
        f" {args.steps} with guidance {config.objective.cfg:g}"
    )
    report(title, HEAD, rows, device=world.device, path=args.json)


if __name__ == "__main__":
    run_program(main)
