"""Write what users take away: a checked bundle, ready for a hub.

    tdmvid export --run runs/X --format diffusers,comfyui --dtype bfloat16
    tdmvid export --run runs/X --checkpoint runs/X/checkpoints/step_000500 --weights raw \\
        --out exports/raw
    tdmvid export --run runs/X --fuse
    tdmvid export --run runs/X --push owner/name
    tdmvid export --run runs/full --rank 64
    tdmvid export --run runs/X --average-with runs/Y --out exports/mean
    tdmvid export --network finetuned/transformer --model BASE --size 49x480x720 --steps 4 \\
        --rank 64 --prompt "..." --out exports/svd
    tdmvid export --published tdm.pt --model BASE --size 49x480x720 \\
        --timesteps 999,856,665,399 --prompt "..." --out exports/tdm
    python launch/export_lora.py --run runs/X

One process, without a launcher, whatever the run was trained on. Every file is loaded again,
sampled and compared; above tolerance nothing is written, and nothing uploaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.paths import expand_home, home_path
from .given import refuse_ignored
from .sampler_options import (
    DECODING,
    add_base_files,
    add_decoding,
    refuse_fps_of_images,
    refuse_images,
)

if TYPE_CHECKING:
    from ..backbones.base import Backbone
    from ..diffusion.grid import TimeGrid
    from ..export.push import HubTarget
    from ..export.request import ExportRequest

OTHERS = {
    "run": (
        *("model", "revision", "variant", "pipeline", "base_dtype", "size", "fps"),
        *("timesteps", "steps", "scale", *DECODING),
    ),
    "published": ("rank", "checkpoint", "weights", "average_with"),
    "network": ("scale", "fuse", "checkpoint", "weights", "average_with"),
}
"""Source -> the options that belong to other sources."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid export`."""
    _add_source(parser)
    _add_files(parser)
    _add_check(parser)
    _add_push(parser)
    _add_base(parser.add_argument_group("with --published and --network"))


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run folder")
    source.add_argument(
        "--published", type=Path, help="a LoRA file from elsewhere: .safetensors, .pt or .bin"
    )
    source.add_argument(
        "--network", type=Path, help="a fine-tuned network: a diffusers model folder"
    )
    parser.add_argument("--checkpoint", type=Path, help="of the run; default: the newest whole one")
    parser.add_argument(
        "--weights",
        choices=["ema", "raw"],
        default="",
        help="default: ema if the run keeps an average",
    )
    parser.add_argument(
        "--average-with",
        type=home_path,
        action="append",
        default=[],
        metavar="RUN",
        help="export the mean of the weights of the run and of the newest checkpoint of this run,"
        " which started from the same weights; may be given again",
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        help="default: in the run's folder, export, export_fused, export_rank64, export_raw,"
        " export_step_000500, export_mean_OTHER",
    )
    parser.add_argument(
        "--format",
        default="diffusers",
        help="diffusers (always written), comfyui, kohya; with commas between",
    )
    parser.add_argument(
        "--dtype",
        default="",
        help="of the files: float32, float16 or bfloat16 (default: float32; a network's: its"
        " base's)",
    )
    parser.add_argument("--fuse", action="store_true", help="write base and LoRA as one network")
    parser.add_argument(
        "--rank",
        type=int,
        default=0,
        help="of a fine-tuned network, write a LoRA of this rank (SVD) and its error",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="of the check and the sample videos; may be given again (default: the run's)",
    )
    parser.add_argument(
        "--image",
        type=expand_home,
        action="append",
        default=[],
        help="the first frame of a prompt, for an image-to-video model; once for each, or for all",
    )
    parser.add_argument("--seed", type=int, default=1234, help="of their noise")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="relative difference that the check allows (default: by the dtypes, see"
        " docs/export.md)",
    )


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hub-base",
        metavar="OWNER/NAME",
        default="",
        help="hub id of the base, if the run used a copy in a folder: the card and export.json then"
        " name it instead of the folder",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the bundle with its card to this model repository of the Hugging Face hub; it"
        " is created if it does not exist (needs `hf auth login` or HF_TOKEN)",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="with --push: everybody may read it (default: private)",
    )


def _add_base(base: argparse._ArgumentGroup) -> None:
    base.add_argument("--model", type=expand_home, help="the base: a diffusers folder or hub id")
    add_base_files(base)
    add_decoding(base)
    base.add_argument(
        "--base-dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the base (default: bfloat16 on a GPU, float32 on a CPU)",
    )
    base.add_argument("--size", metavar="FxHxW", help="frames x height x width")
    base.add_argument("--fps", type=int, help="frames per second of the files (default: 8)")
    base.add_argument(
        "--timesteps", help="the network timesteps of its steps, e.g. 999,856,665,399"
    )
    base.add_argument("--steps", type=int, help="instead of timesteps: so many even steps")
    base.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="at which a published LoRA is to be loaded; it becomes part of the export",
    )


def run(args: argparse.Namespace) -> None:
    """Write the bundle, print how far it is from the student, and upload it with `--push`."""
    from ..data.files import check_writable

    _check_options(args)
    target = _check_target(args)
    out = args.out or (args.run / default_name(args) if args.run else None)
    if out:
        from ..export.replace import check_replaceable

        check_writable(out, "--out")
        check_replaceable(out)
    facts = _export(args, out)
    print(
        f"{out}: relative difference {facts['error']:.1e} of at most {facts['tolerance']:.0e}"
        " in a stock pipeline"
    )
    others = list(_others(out, facts)) if out else []
    for folder, error in others:
        print(f"{folder}: relative difference {error:.1e}")
    for consumer, error in facts.get("errors", {}).items():
        print(f"{facts['formats'][consumer]}: {error:.1e}")
    if facts.get("comfyui_lack"):
        print(f"no workflow for ComfyUI: {facts['comfyui_lack']}")
    if "original" in facts:
        from ..export.original import describe_comparison

        print(f"{args.published.name}:{describe_comparison(facts['original'])}")
    if "extraction" in facts:
        extraction = facts["extraction"]
        print(
            f"rank {extraction['rank']} lacks {extraction['error']:.1%} of the change of the"
            f" weights; latents differ by {extraction['latents_error']:.1%}"
        )
    if target and out:
        from ..export.push import upload

        print(f"uploaded: {upload(out, target)} ({target.visibility})")
        for folder, _ in others:
            print(f"not uploaded: {folder} (use `hf upload OWNER/NAME {folder}`)")


def _others(out: Path, facts: dict) -> Iterator[tuple[Path, float]]:
    """Yield the further bundles of an export, with the error of each."""
    from ..adapters.bundle import SET, read_facts

    for name in facts.get(SET, ()):
        folder = out.with_name(name)
        if folder.resolve() != out.resolve():
            yield folder, read_facts(folder)["error"]


def _check_target(args: argparse.Namespace) -> HubTarget | None:
    """Return where to upload; what would make that fail is refused before the export."""
    if args.push is None:
        refuse_ignored(args, ["public"], "without --push")
        return None
    from ..export.push import HubTarget, check_target

    target = HubTarget(args.push, args.public)
    check_target(target)
    return target


def _check_options(args: argparse.Namespace) -> None:
    """Refuse an option that the chosen source does not read."""
    source = "run" if args.run else "published" if args.published else "network"
    refuse_ignored(args, OTHERS[source], f"with --{source}")


def default_name(args: argparse.Namespace) -> str:
    """Return one folder name for each kind of export of a run, so that none replaces another."""
    kinds = [
        "fused" * args.fuse,
        f"rank{args.rank}" * bool(args.rank),
        args.weights,
        args.checkpoint.name if args.checkpoint else "",
        *(["mean", *(run.name for run in args.average_with)] if args.average_with else []),
    ]
    return "_".join(["export", *filter(None, kinds)])


def _export(args: argparse.Namespace, out: Path | None) -> dict:
    """Export from the chosen source and return what the bundle's export.json says."""
    from ..export.sources import export_published, export_run, export_tuned

    request = _request(args)
    if not out:
        raise ValueError("--out is missing: name the folder to write")
    if args.run:
        return export_run(
            out,
            args.run,
            request,
            checkpoint=args.checkpoint,
            weights=args.weights,
            others=args.average_with,
        )
    if bool(args.timesteps) == bool(args.steps):
        raise ValueError(
            "give either --timesteps or --steps: the times that the student was trained on"
        )
    refuse_fps_of_images(args, None)
    listed = _timesteps(args.timesteps)
    if not args.prompt:
        raise ValueError(
            "--prompt is missing: give at least one prompt, on whose samples the export is checked"
        )
    _check_source(args)
    backbone = _load_base(args)
    refuse_images(args, ["image"], backbone)
    grid = _build_grid(listed, args.steps, backbone)
    if args.published:
        return export_published(out, args.published, backbone, grid, request, scale=args.scale)
    return export_tuned(out, args.network, backbone, grid, request)


def _request(args: argparse.Namespace) -> ExportRequest:
    from ..export.request import ExportRequest

    return ExportRequest(
        tuple(name.strip() for name in args.format.split(",")),
        args.dtype,
        args.fuse,
        args.rank,
        tuple(args.prompt),
        tuple(args.image),
        args.seed,
        args.tolerance,
        args.hub_base,
    )


def _check_source(args: argparse.Namespace) -> None:
    """Check the files to export before the base is loaded, which can be a long download."""
    if args.published and not args.published.exists():
        raise ValueError(f"--published {args.published}: no such file or folder: check the path")
    if args.network:
        from ..export.sources import check_network_folder

        check_network_folder(args.network)


def _load_base(args: argparse.Namespace) -> Backbone:
    from ..parallel import launch
    from ..sampling.student import load_for_sampling

    return load_for_sampling(
        launch.start_alone(),
        model=args.model,
        revision=args.revision,
        variant=args.variant,
        pipeline=args.pipeline,
        dtype=args.base_dtype,
        size=args.size,
        fps=args.fps,
        guidance=args.guidance,
        tiling=args.tiling,
    )


def _build_grid(listed: tuple[float, ...], steps: int | None, backbone: Backbone) -> TimeGrid:
    from ..config import GridConfig
    from ..distill.grids import build_grid

    if listed or steps is None:
        config = GridConfig("explicit", timesteps=listed)
    else:
        config = GridConfig(steps=steps)
    return build_grid(config, backbone.process)


def _timesteps(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(step) for step in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(
            f"--timesteps {text!r}: use numbers with commas between, e.g. 999,856,665,399"
        ) from None
