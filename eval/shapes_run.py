"""Score samplers on the shapes world: held-out captions, fixed seeds, the same noise for all.

    python eval/shapes_run.py --run runs/shapes_4nfe
    python eval/shapes_run.py --model tdmvid/shapes/teacher --steps 8 --cfg 3
    python eval/shapes_run.py --model tdmvid/shapes/teacher --lora runs/shapes_4nfe/lora --steps 4
    --cfg 1

--run scores a run's student beside its teacher and renews the run's report. Every sampler
is the STOCK diffusers pipeline, with the LoRA and the scheduler that the run exported.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tdmvid.backbones.base import Backbone, ClipSize, ModelConfig  # noqa: E402
from tdmvid.backbones.registry import load_backbone  # noqa: E402
from tdmvid.data.files import write_json  # noqa: E402
from tdmvid.diffusion.denoiser import Cond  # noqa: E402
from tdmvid.report.page import write_report  # noqa: E402
from tdmvid.sampling.student import use_student, weights_of  # noqa: E402
from tdmvid.shapes import score, world  # noqa: E402
from tdmvid.shapes.judge import load_judge  # noqa: E402

COLUMNS = [
    {"key": "all", "label": "all attributes right", "unit": "%", "better": "high"},
    {"key": "colour", "label": "colour", "unit": "%", "better": "high"},
    {"key": "shape", "label": "shape", "unit": "%", "better": "high"},
    {"key": "direction", "label": "direction", "unit": "%", "better": "high"},
    {"key": "frechet", "label": "Fréchet distance", "unit": "", "better": "low"},
    {"key": "diversity", "label": "diversity", "unit": "", "better": "high"},
    {"key": "flicker", "label": "flicker", "unit": "", "better": "low"},
]


@dataclass(frozen=True)
class Sampler:
    """A stock pipeline call; `student` is a folder with a LoRA or a whole network and its
    scheduler.
    """

    name: str
    steps: int
    cfg: float
    student: Path | None = None

    @property
    def nfe(self) -> int:
        """Network evaluations per video; a guided step costs two."""
        return self.steps * (1 if self.cfg == 1 else 2)


def sample(
    backbone: Backbone, sampler: Sampler, z: Tensor, cond: Cond, null: Cond, batch: int
) -> tuple[Tensor, float]:
    """Latents [N, ...] from noise z, and seconds per video in the denoiser."""
    pipeline = use_student(backbone, sampler.student)
    parts, began = [], time.perf_counter()
    for start in tqdm(range(0, len(z), batch), desc=sampler.name):
        rows = slice(start, start + batch)
        parts.append(
            backbone.stock.latents(
                pipeline, z[rows], cond.rows(rows), steps=sampler.steps, cfg=sampler.cfg, null=null
            )
        )
    return torch.cat(parts), (time.perf_counter() - began) / len(z)


def run_samplers(run: Path, config: dict) -> list[Sampler]:
    """The student of a run beside its teacher: long, and in as few steps with and without guidance."""
    cfg, long, grid = config["objective"]["cfg"], config["log"]["teacher_steps"], config["grid"]
    few = len(grid["timesteps"]) if grid["kind"] == "explicit" else grid["steps"]
    student = student_of(run, config)
    if not student.is_dir():
        raise ValueError(
            f"{run} has no {student.name}/: train it to the end first (python launch/train.py"
            " --config ... --resume auto)"
        )
    return [
        Sampler(f"teacher, {long} steps, cfg {cfg:g}", long, cfg),
        Sampler(f"teacher, {few} steps, cfg {cfg:g}", few, cfg),
        Sampler(f"teacher, {few} steps, no guidance", few, 1.0),
        Sampler(f"student, {few} steps", few, 1.0, student),
    ]


def student_of(run: Path, config: dict) -> Path:
    """Where a run exports its student: a LoRA or a whole network."""
    return run / ("lora" if config["training"] == "lora" else "student")


def evaluate(backbone: Backbone, samplers: list[Sampler], args: argparse.Namespace) -> dict:
    """Scores of all samplers in the layout of the report, ground truth first."""
    judge = load_judge()
    things = score.evaluation_set(args.captions, args.seeds, args.seed)
    reference = score.reference_features(judge, things, args.reference, args.seed + 1)
    cond = backbone.encode_prompts([world.caption(t) for t in things])
    null = backbone.encode_prompts([""])
    backbone.release_text()
    generator = torch.Generator().manual_seed(args.seed + 2)
    z = torch.randn((len(things), *backbone.latent_shape()), generator=generator)
    truth = world.draw_videos(things, generator)
    rows = [
        {"name": "ground truth", "metrics": score.score_videos(judge, truth, things, reference)}
    ]
    for sampler in samplers:
        latents, seconds = sample(backbone, sampler, z, cond, null, args.batch)
        videos = torch.cat(
            [
                backbone.decode(part)
                for part in tqdm(latents.split(32), desc="decoding", leave=False)
            ]
        )
        metrics = score.score_videos(judge, videos, things, reference)
        rows.append(
            {
                "name": sampler.name,
                "nfe": sampler.nfe,
                "seconds_per_video": seconds,
                "metrics": metrics,
            }
        )
        print(f"{sampler.name}: {summary(metrics)}")
    protocol = (
        f"{args.captions} held-out captions x {args.seeds} seeds, the same noise for every sampler"
        f" (seed {args.seed}); Fréchet distance to {args.reference} fresh ground-truth videos of"
        " the same captions; 95 % bootstrap intervals; seconds of the denoiser alone; python"
        " eval/shapes_run.py"
    )
    return {"protocol": protocol, "columns": COLUMNS, "samplers": rows}


def summary(metrics: dict) -> str:
    """One line of figures."""
    shown = ("all", "shape", "frechet", "diversity", "flicker")
    return ", ".join(
        f"{key} {metrics[key]['value']:.4g} [{metrics[key]['low']:.4g}, {metrics[key]['high']:.4g}]"
        for key in shown
    )


def checks(rows: list[dict]) -> list[dict]:
    """What the student promises, and whether this run kept it."""
    value = lambda row, key: rows[row]["metrics"][key]["value"]  # noqa: E731
    teacher, guided, plain, student = 1, 2, 3, 4
    points = 100 * (value(student, "all") - value(teacher, "all"))
    worse = min(value(guided, "frechet"), value(plain, "frechet")) / value(teacher, "frechet")
    frechet = value(student, "frechet") / value(teacher, "frechet")
    diversity = value(student, "diversity") / value(teacher, "diversity")
    return [
        {
            "claim": (
                "the teacher cannot do it: its Fréchet distance in as few steps is at least 2 x"
                " that of its long sampling"
            ),
            "value": f"{worse:.2f} x",
            "passed": worse >= 2,
        },
        {
            "claim": "accuracy: at least the teacher's minus 1 point",
            "value": f"{points:+.1f} points",
            "passed": points >= -1,
        },
        {
            "claim": "Fréchet distance: at most 1.1 x the teacher's",
            "value": f"{frechet:.2f} x",
            "passed": frechet <= 1.1,
        },
        {
            "claim": "diversity: at least 0.9 x the teacher's",
            "value": f"{diversity:.2f} x",
            "passed": diversity >= 0.9,
        },
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, help="a run folder: scores go to its scores.json and report.html"
    )
    parser.add_argument("--model", default=str(ROOT / "tdmvid/shapes/teacher"))
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4, help="videos per caption")
    parser.add_argument(
        "--reference", type=int, default=4096, help="ground-truth videos of the Fréchet distance"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the scores here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    size = ClipSize(world.FRAMES, world.SIZE, world.SIZE, 8)
    try:
        if args.captions < 1 or args.seeds < 2:
            raise ValueError(
                f"--captions {args.captions}, --seeds {args.seeds}: at least one caption and two"
                " videos of each, which diversity compares"
            )
        if args.run:
            path = args.run / "config.json"
            if not path.is_file():
                raise ValueError(f"{args.run} is no run folder: it has no config.json")
            config = json.loads(path.read_text())
            samplers, model = run_samplers(args.run, config), config["model"]["path"]
        else:
            samplers, model = (
                [Sampler(f"{args.steps} steps, cfg {args.cfg:g}", args.steps, args.cfg, args.lora)],
                args.model,
            )
        scores = evaluate(load_backbone(ModelConfig(path=model), size), samplers, args)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    if args.json:
        write_json(args.json, scores)
    if args.run:
        scores |= {
            "checks": checks(scores["samplers"]),
            "weights": weights_of(student_of(args.run, config)),
        }
        write_json(args.run / "scores.json", scores)
        for check in scores["checks"]:
            print(
                f"{'kept  ' if check['passed'] else 'MISSED'}  {check['claim']}: {check['value']}"
            )
        print(f"report: {write_report(args.run)}")


if __name__ == "__main__":
    main()
