"""Create the shapes teacher from scratch: autoencoder, judge, transformer, pipeline folder, scores,
and its image-to-video version in the user's cache folder (`model.path: "shapes_i2v"`).

    python -m examples.shapes.make_teacher --stage all --work build/shapes
    python -m examples.shapes.make_teacher --stage image --work build/shapes

Deterministic for a given device and number of threads, and resumable after an interruption.
`--stage assemble` can also make a pipeline from a transformer that is still in training.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_number
from tdmvid.config.embedded import image_folder
from tdmvid.config.ranges import MILLION, Range
from tdmvid.shapes import TEACHER

from . import quality, text, train_image, train_judge, train_transformer, vae

STAGES = ("vae", "judge", "teacher", "decoder", "assemble", "score", "image")
VAE_ITERATIONS, JUDGE_ITERATIONS, DECODER_ITERATIONS = 7000, 1200, 1200


def load_vae(work: Path, *, refined: bool = False) -> AutoencoderKLCogVideoX:
    """Load the trained autoencoder.

    Args:
        work: Folder of the training.
        refined: Whether to load the refined decoder, if it exists.

    Returns:
        The autoencoder in evaluation mode.

    Raises:
        ValueError: It is not trained yet.
    """
    if not (work / "vae" / "config.json").exists():
        raise ValueError(f"{work / 'vae'} does not exist: finish --stage vae first")
    name = "vae_refined" if refined and (work / "vae_refined" / "config.json").exists() else "vae"
    return AutoencoderKLCogVideoX.from_pretrained(work / name).eval().requires_grad_(False)


def make_vae(work: Path, device: str) -> None:
    """Train the autoencoder and write it to `work/vae`.

    Args:
        work: Folder of the training.
        device: Device to train on.
    """
    vae.train_vae(work, iterations=VAE_ITERATIONS, device=device).save_pretrained(work / "vae")


def make_decoder(work: Path, device: str) -> None:
    """Refine the decoder on the transformer's latents and write it to `work/vae_refined`.

    Args:
        work: Folder of the training.
        device: Device to train on.
    """
    model = load_vae(work)
    vae.refine_decoder(work, model, iterations=DECODER_ITERATIONS, device=device)
    model.save_pretrained(work / "vae_refined")


def make_transformer(work: Path, device: str, iterations: int) -> None:
    """Train the transformer and the text encoder.

    Args:
        work: Folder of the training.
        device: Device to train on.
        iterations: Number of iterations.
    """
    recipe = train_transformer.Recipe(iterations=iterations)
    train_transformer.train_teacher(work, load_vae(work), recipe, device=device)


def make_image_teacher(work: Path, device: str, iterations: int) -> None:
    """Fine-tune the embedded teacher to start from a given first frame.

    Args:
        work: Folder of the training.
        device: Device to train on.
        iterations: Number of iterations.
    """
    recipe = train_image.Recipe(iterations=iterations)
    out = image_folder()
    out.parent.mkdir(parents=True, exist_ok=True)
    train_image.train_image_teacher(work, out, recipe, device=device)
    print(f"{out}: model.path=shapes_i2v")


def assemble(work: Path, out: Path) -> None:
    """Write the last checkpoint as a CogVideoXPipeline folder in float16, atomically.

    Args:
        work: Folder of the training.
        out: Folder of the pipeline.
    """
    teacher, step = train_transformer.trained(work)
    pipe = CogVideoXPipeline(
        tokenizer=text.build_tokenizer(),
        text_encoder=teacher.encoder,
        vae=load_vae(work, refined=True),
        transformer=teacher.transformer,
        scheduler=train_transformer.build_scheduler(),
    ).to(torch.float16)
    aside = out.with_name(out.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    pipe.save_pretrained(aside)
    for path in aside.glob("*/config.json"):  # remove the folder that the model was loaded from
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    size = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
    (aside / "made.json").write_text(json.dumps({"iterations": step, "bytes": size}) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    print(f"{out}: {size / 1e6:.1f} MB after {step} iterations")


def read_options() -> argparse.Namespace:
    """Read and check the options.

    Raises:
        ValueError: A number is out of its range.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stage", choices=(*STAGES, "all"), default="all", help="stage to run (default: all)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="device to train and sample on"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/shapes"), help="checkpoints and cached latents"
    )
    parser.add_argument("--out", type=Path, default=TEACHER, help="folder of the pipeline")
    parser.add_argument(
        "--iterations",
        type=int,
        default=train_transformer.Recipe.iterations,
        help="iterations of the transformer's training",
    )
    parser.add_argument(
        "--image-iterations",
        type=int,
        default=train_image.Recipe.iterations,
        help="iterations of the image-to-video fine-tuning",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads; results depend on them",
    )
    args = parser.parse_args()
    for name in ("iterations", "image_iterations"):
        option = f"--{name.replace('_', '-')}"
        check_number(option, getattr(args, name), Range(1, MILLION, "iterations"))
    check_number("--threads", args.threads, Range(1, 1024, "threads"))
    return args


def main() -> None:
    """Run one stage, or all in order."""
    args = read_options()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    actions = {
        "vae": lambda: make_vae(args.work, args.device),
        "judge": lambda: train_judge.train_judge(
            args.work, load_vae(args.work), iterations=JUDGE_ITERATIONS, device=args.device
        ),
        "teacher": lambda: make_transformer(args.work, args.device, args.iterations),
        "decoder": lambda: make_decoder(args.work, args.device),
        "assemble": lambda: assemble(args.work, args.out),
        "score": lambda: quality.measure(args.out, device=args.device),
        "image": lambda: make_image_teacher(args.work, args.device, args.image_iterations),
    }
    for stage in STAGES if args.stage == "all" else (args.stage,):
        actions[stage]()


if __name__ == "__main__":
    run_program(main)
