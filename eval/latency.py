"""Seconds and peak memory of a student beside its teacher: text encoder, denoiser, autoencoder, and
one whole call.

    python eval/latency.py --lora runs/X/lora --steps 50 --cfg 6
    python eval/latency.py --lora runs/X/lora --model THUDM/CogVideoX-2b --size 49x480x720 --batch 1
    --repeats 5

With few steps the autoencoder can take most of the time: the speed-up of the whole is then far
below the ratio of network calls, which is why both are printed. "All" is the sum of the stages,
"end to end" one stock call from a prompt to pictures, everything on the device; where they
disagree, it is said.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tdmvid.adapters.bundle import read_facts, use_student  # noqa: E402
from tdmvid.backbones.base import Backbone  # noqa: E402
from tdmvid.data.files import write_json  # noqa: E402
from tdmvid.parallel import launch  # noqa: E402
from tdmvid.sampling.sample import load_for_sampling, noise  # noqa: E402
from tdmvid.scoring.latency import Stage, measure  # noqa: E402

STAGES = ("text", "denoiser", "autoencoder")
AGREE = 0.1
"""Share by which a whole call may differ from the sum of its stages without being mentioned."""


def stages(
    backbone: Backbone,
    student: Path | None,
    prompts: list[str],
    *,
    steps: int,
    cfg: float,
    repeats: int,
) -> dict[str, Stage]:
    """Every stage of one sampler's batch, alone: what it gives is made once, and stays for the
    next.
    """
    device, texts = backbone.device, prompts if cfg == 1 else [*prompts, ""]
    timed = {"text": measure(lambda: backbone.encode_prompts(texts), device, repeats=repeats)}
    cond = backbone.encode_prompts(prompts).to(device)
    null = None if cfg == 1 else backbone.encode_prompts([""]).to(device)
    backbone.release_text()
    pipeline = use_student(backbone, student)
    z = torch.stack(
        [noise(prompt, index, backbone.latent_shape()) for index, prompt in enumerate(prompts)]
    ).to(device)

    def denoise() -> torch.Tensor:
        return backbone.stock_latents(pipeline, z, cond, steps=steps, cfg=cfg, null=null)

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
    """The stock pipeline's call as a user makes it, from prompts to pictures."""
    pipeline = use_student(backbone, student, whole=True)
    return measure(
        lambda: backbone.stock_videos(pipeline, prompts, steps=steps, cfg=cfg),
        backbone.device,
        repeats=repeats,
    )


def compare(
    timed: dict[str, dict[str, Stage]], calls: dict[str, int], whole: dict[str, Stage]
) -> dict:
    """Both samplers' stages with sums and shares, their whole calls, and how many times faster the
    student is.
    """
    rows = {}
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
    """Markdown: seconds per video, share and peak memory of every stage, and what a whole call says
    of their sum.
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
                f"\nThe {name}'s whole call takes {more} than its stages together: quote the whole"
                " call."
            )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lora",
        type=Path,
        required=True,
        help="a run's lora/ or student/ folder, or an exported one",
    )
    parser.add_argument(
        "--model", help="a diffusers folder or hub id (default: the base that the student names)"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--size", metavar="FxHxW", help="default: what the student was trained on")
    parser.add_argument("--steps", type=int, default=50, help="of the teacher")
    parser.add_argument("--cfg", type=float, default=6.0, help="guidance scale of the teacher")
    parser.add_argument("--prompt", default="a red ring moving left and a blue square moving up")
    parser.add_argument("--batch", type=int, default=1, help="videos at a time")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed calls of each stage, after one that is not"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        world = launch.start("none")
        backbone = load_for_sampling(
            world, student=args.lora, model=args.model, dtype=args.dtype, size=args.size
        )
        steps = read_facts(args.lora).get("steps")
        if not steps:
            raise ValueError(
                f"{args.lora} does not say for how many steps it was trained: export it with"
                " launch/export_lora.py"
            )
        if args.batch < 1:
            raise ValueError(f"--batch {args.batch}: at least 1")
        prompts = [args.prompt] * args.batch
        samplers = {"teacher": (None, args.steps, args.cfg), "student": (args.lora, steps, 1.0)}
        timed, whole = (
            {
                name: time(backbone, student, prompts, steps=k, cfg=cfg, repeats=args.repeats)
                for name, (student, k, cfg) in samplers.items()
            }
            for time in (stages, end_to_end)
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    found = compare(
        timed, {"teacher": args.steps * (1 if args.cfg == 1 else 2), "student": steps}, whole
    )
    device = (
        torch.cuda.get_device_name(world.device)
        if world.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    machine = f"{device}; torch {torch.__version__}, {platform.platform()}"
    found |= {
        "machine": machine,
        "model": asdict(backbone.config),
        "video": asdict(backbone.size),
        "batch": args.batch,
    }
    size = backbone.size
    print(
        f"{found['machine']}\n{size.frames} x {size.height} x {size.width},"
        f" {backbone.config.dtype}, batch {args.batch}, median of {args.repeats}\n"
    )
    print(table(found, args.batch))
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
