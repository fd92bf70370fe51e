"""Score a student and its teacher, or any folder of samples.

    eval/setup_vbench.sh                                                  # once
    tdmvid score vbench                                     # the latest finished run in runs/
    tdmvid score vbench --config vbench_cogvideox2b --preflight    # list missing weights
    tdmvid score vbench --config vbench_cogvideox2b --download     # download them
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    tdmvid score images --config images --lora runs/X/lora
    tdmvid score shapes --run runs/shapes_4nfe
    tdmvid score samples videos teacher                     # motion, colour, diversity
    tdmvid score modes runs/A/lora runs/B/lora --prompt "a red ring" --out modes
    tdmvid score conditions runs/X/lora --prompt "a red ring" --cfg 2 --out grid
    tdmvid score --compare A/vbench B/vbench                # results of two machines or versions
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

`tdmvid score vbench --help` shows the options of a command.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import conditions, modes, shapes
from .given import refuse_ignored
from .options import add_evaluation, add_verbose, output_dir, output_file

if TYPE_CHECKING:
    from ..scoring.preflight import Preflight

Command = Callable[[argparse.Namespace], None]
VERIFIED = ("environment", "cache")
"""Settings that `tdmvid score vbench --verify` reads."""
VBENCH = """Score a student and its teacher with VBench.

    tdmvid score vbench                                     # the latest finished run in runs/
    tdmvid score vbench --config vbench_cogvideox2b --preflight    # list missing weights
    tdmvid score vbench --config vbench_cogvideox2b --download     # download them
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    tdmvid score vbench --verify                            # check known totals and defects
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

If the command is killed, running it again continues where it stopped. Dimensions without weights
are listed and skipped. A total is printed only if all sixteen dimensions were scored.
"""
IMAGES = """Score a student and its teacher with image metrics.

    tdmvid score images                                     # the latest finished run in runs/
    tdmvid score images --config images --preflight
    tdmvid score images --config images --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score images --config images --lora runs/X/lora
    python eval/image_run.py --config eval/configs/images.json --lora runs/X/lora

The FID between student and teacher measures how much of the teacher's style the student keeps.
Metrics without weights or packages are listed and skipped.
"""
SAMPLES = """Measure motion, colour, sharpness and diversity of folders of samples.

    tdmvid score samples videos
    tdmvid score samples videos teacher --json measures.json

No network weights are needed. Any folder of videos or images of one size works. Without a
manifest.jsonl from `tdmvid sample`, files are seeds of one prompt if their names differ only in a
number at the end, after "-", "_" or a space: ring-0.mp4 and ring-1.mp4. Intervals are bootstrapped
over prompts.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tdmvid score` and their options to a parser."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="compare the results.json of two evaluations; fails if their protocols differ",
    )
    parser.set_defaults(function=score_nothing)
    commands = parser.add_subparsers(metavar="{vbench,images,shapes,samples,modes,conditions}")
    vbench = _add(commands, "vbench", VBENCH, score_vbench)
    add_evaluation(vbench, example="vbench_cogvideox2b", folder="vbench")
    vbench.add_argument(
        "--download",
        action="store_true",
        help="download missing weights, list what can be scored, and stop",
    )
    vbench.add_argument(
        "--verify",
        action="store_true",
        help="check the scores of published totals and of videos with known defects, and stop",
    )
    vbench.add_argument(
        "--stage",
        choices=["all", "sample", "score"],
        default="all",
        help="only sample, or only score existing samples",
    )
    images = _add(commands, "images", IMAGES, score_images)
    add_evaluation(images, example="images", folder="images")
    shapes.add_arguments(_add(commands, "shapes", shapes.__doc__ or "", shapes.run))
    samples = _add(commands, "samples", SAMPLES, score_samples)
    samples.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="folders of videos or images"
    )
    samples.add_argument(
        "--limit", type=int, default=0, help="number of files per folder; 0 (default) uses all"
    )
    samples.add_argument("--json", type=output_file, help="write the scores to this file")
    modes.add_arguments(_add(commands, "modes", modes.__doc__ or "", modes.run))
    conditions.add_arguments(_add(commands, "conditions", conditions.__doc__ or "", conditions.run))


def _add(
    commands: argparse._SubParsersAction, name: str, text: str, function: Command
) -> argparse.ArgumentParser:
    """Add one command. Its function is called with the parsed options."""
    parser = commands.add_parser(
        name,
        help=text.splitlines()[0],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    add_verbose(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    """Run the chosen command, or compare two evaluations.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If no command was chosen, or an option is invalid.
    """
    if args.compare:
        from ..scoring.compare import compare

        if args.function is not score_nothing:
            raise ValueError(
                "--compare reads existing results and cannot be combined with a command: remove"
                " the command"
            )
        print(compare(*args.compare))
        return
    args.function(args)


def score_nothing(args: argparse.Namespace) -> None:
    """Raise an error, because neither a command nor results to compare were given.

    Args:
        args: Options of `tdmvid score`.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "choose vbench, images, shapes, samples, modes or conditions, or use --compare A B"
    )


def _read_config(kind: type, args: argparse.Namespace) -> Any:
    """Read the config of an evaluation; called before torch is imported, to report typos early."""
    from ..config import from_dict, read_settings
    from ..config.resources import find_evaluation

    return from_dict(kind, read_settings(find_evaluation(args.config), args.set))


def _choose(args: argparse.Namespace, kind: type, program: str) -> None:
    """Default to the latest finished run and the config of its family, and print the choice.

    See scoring/finished_runs.py.
    """
    if args.preflight:
        refuse_ignored(args, ["out"], "with --preflight, which writes nothing")
    if args.config:
        _read_config(kind, args)  # report typos in the config first
    from ..adapters.bundle import require_facts

    if args.lora:
        require_facts(args.lora, {})
    if args.config and (args.lora or args.preflight or getattr(args, "download", False)):
        return
    from ..scoring.finished_runs import (
        IMAGES,
        evaluation_of,
        image_overrides,
        newest_student,
        read_student,
        size_overrides,
    )

    newest = ""
    if args.lora:
        student = read_student(args.lora)
    else:
        student, count = newest_student(program)
        args.lora = student.folder
        newest = f", the latest of {count} finished run{'s' * (count != 1)}"
    if not args.config:
        args.config = evaluation_of(student, program)
        if program == "vbench":
            args.set = [*size_overrides(student.size, args.config), *args.set]
        elif args.config == IMAGES:
            args.set = [*image_overrides(student), *args.set]
    if os.environ.get("RANK", "0") == "0":
        changed = "".join(f" --set {override}" for override in args.set)
        print(f"scoring {args.lora}{newest}, with --config {args.config}{changed}", flush=True)


def _renew_report(student: Path) -> None:
    """Add the results to the report of the student's run, if the student is in a run folder."""
    if os.environ.get("RANK", "0") != "0" or not (student.parent / "config.json").is_file():
        return
    from ..report.page import REPORT, write_report

    if (student.parent / REPORT).is_file():
        print(f"report: {write_report(student.parent)}")


def score_vbench(args: argparse.Namespace) -> None:
    """Sample student and teacher, score them with VBench and compare, or list what can be scored.

    Args:
        args: Options of `tdmvid score vbench`.

    Raises:
        ValueError: If a setting or an option is invalid.
    """
    from ..config import VBenchConfig

    if args.verify:
        _verify(args)
        return
    if args.download:
        ignored = ("preflight", "out", "stage")
        refuse_ignored(args, ignored, "with --download, which lists what can be scored, and stops")
    _choose(args, VBenchConfig, "vbench")
    config: VBenchConfig = _read_config(VBenchConfig, args)
    from ..scoring import vbench_run

    evaluation = vbench_run.prepare(config)
    if args.download:
        _download(evaluation.checked, evaluation.environment.find_python())
        evaluation = vbench_run.prepare(config)
        print(evaluation.checked.describe())
        return
    if args.stage != "sample":
        evaluation.environment.find_python()  # check before anything is sampled
    if args.preflight:
        print(evaluation.checked.describe())
    else:
        out = output_dir(args, "vbench")
        vbench_run.run(evaluation, args.lora, out, stage=args.stage)
        if args.stage != "sample":
            _renew_report(args.lora)


def _verify(args: argparse.Namespace) -> None:
    """Check the scores of known totals and defects.

    Raises:
        ValueError: If an option or an override has no effect on them.
        RuntimeError: If a score is wrong.
    """
    ignored = ("lora", "out", "preflight", "download", "stage")
    refuse_ignored(args, ignored, "with --verify, which makes its own videos")
    from ..config import VBenchConfig, from_dict, override, read_settings
    from ..config.resources import find_evaluation

    settings = read_settings(find_evaluation(args.config)) if args.config else {}
    config = from_dict(VBenchConfig, override(settings, args.set))
    for text in args.set:
        if text.partition("=")[0] not in VERIFIED:
            raise ValueError(
                f"--set {text} has no effect with --verify, which reads only"
                f" {' and '.join(VERIFIED)}: remove it"
            )
    from ..scoring.vbench_verify import verify

    if not verify(config):
        raise RuntimeError("VBench gives wrong scores here: see the lines marked WRONG")


def _download(checked: Preflight, python: Path) -> None:
    """Download missing weights; weights that cannot be downloaded are listed and skipped."""
    from ..scoring.vbench_download import download

    for path, reason in download(checked, python).items():
        print(f"not downloaded: {path} ({reason})")


def score_images(args: argparse.Namespace) -> None:
    """Sample student and teacher, measure and compare them, or list what can be measured.

    Args:
        args: Options of `tdmvid score images`.

    Raises:
        ValueError: If a setting or an option is invalid.
    """
    from ..config import ImageConfig

    _choose(args, ImageConfig, "image")
    config: ImageConfig = _read_config(ImageConfig, args)
    from ..scoring import image_run

    checked = image_run.ready(config)
    image_run.shots_of(config)  # a preflight names missing prompts too
    if args.preflight:
        print(checked.describe())
    else:
        image_run.run(config, checked, args.lora, output_dir(args, "images"))
        _renew_report(args.lora)


def score_samples(args: argparse.Namespace) -> None:
    """Measure folders of samples, and print the results side by side.

    Args:
        args: Options of `tdmvid score samples`.

    Raises:
        ValueError: If a folder is invalid.
    """
    from ..data.files import write_json
    from ..scoring.sample_folders import describe, score_folder

    scored = [score_folder(folder, limit=args.limit) for folder in args.folders]
    print(describe(scored))
    if args.json:
        write_json(args.json, {"folders": [one.facts() for one in scored]})
