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

from ..config.json_files import read_json
from ..config.paths import expand_home
from . import conditions, modes
from .options import add_evaluation, add_verbose, output_dir, output_file

if TYPE_CHECKING:
    from ..scoring.preflight import Preflight

Command = Callable[[argparse.Namespace], None]
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
SHAPES = """Score samplers on the shapes world.

    tdmvid score shapes --run runs/shapes_4nfe
    tdmvid score shapes --steps 8 --cfg 3
    tdmvid score shapes --lora runs/shapes_4nfe/lora --steps 4 --cfg 1
    python eval/shapes_run.py --run runs/shapes_4nfe

Captions are held out, seeds are fixed, and all samplers use the same noise. --run scores the
student of a run and its teacher, and updates the report of the run. Every sampler is the unmodified
diffusers pipeline, with the LoRA and the scheduler that the run exported.
"""
SAMPLES = """Measure motion, colour, sharpness and diversity of folders of samples.

    tdmvid score samples videos
    tdmvid score samples videos teacher --json measures.json

No network weights are needed. Any folder of videos or images of one size works. Without a
manifest.jsonl from `tdmvid sample`, files with names that differ only in the number at the end are
seeds of one prompt. Intervals are bootstrapped over prompts.
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
    _add_shapes(_add(commands, "shapes", SHAPES, score_shapes))
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


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, help="run folder; writes scores to its scores.json and report.html"
    )
    parser.add_argument(
        "--model", type=expand_home, help="diffusers folder (default: the embedded teacher)"
    )
    parser.add_argument("--lora", type=Path, help="student to score (default: the teacher)")
    parser.add_argument("--steps", type=int, default=50, help="sampling steps (default: 50)")
    parser.add_argument(
        "--cfg", type=float, default=1.0, help="guidance scale (default: 1, no guidance)"
    )
    parser.add_argument("--captions", type=int, default=64, help="held-out captions (default: 64)")
    parser.add_argument("--seeds", type=int, default=4, help="videos per caption (default: 4)")
    parser.add_argument(
        "--reference", type=int, default=4096, help="ground-truth videos of the Fréchet distance"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of captions and noise")
    parser.add_argument("--batch", type=int, default=64, help="videos per batch")
    parser.add_argument("--json", type=output_file, help="write the scores to this file")


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
    if args.config:
        _read_config(kind, args)  # report typos in the config first
    if args.config and (args.lora or args.preflight or getattr(args, "download", False)):
        return
    from ..adapters.bundle import read_facts
    from ..scoring.finished_runs import evaluation_of, newest_student, read_student, size_overrides

    newest = ""
    if args.lora:
        read_facts(args.lora)  # raises an error if it is not a student
        student = read_student(args.lora)
    else:
        student, count = newest_student(program)
        args.lora = student.folder
        newest = f", the latest of {count} finished run{'s' * (count != 1)}"
    if not args.config:
        args.config = evaluation_of(student, program)
        if program == "vbench":
            args.set = [*size_overrides(student.size, args.config), *args.set]
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
    _choose(args, VBenchConfig, "vbench")
    config: VBenchConfig = _read_config(VBenchConfig, args)
    from ..scoring import vbench_run

    evaluation = vbench_run.prepare(config)
    if args.download:
        _download(evaluation.checked, evaluation.environment.find_python())
        evaluation = vbench_run.prepare(config)
        print(evaluation.checked.describe())
        return
    if args.preflight:
        print(evaluation.checked.describe())
    if args.stage != "sample":
        evaluation.environment.find_python()  # check before anything is sampled
    if not args.preflight:
        out = output_dir(args, "vbench")
        vbench_run.run(evaluation, args.lora, out, stage=args.stage)
        if args.stage != "sample":
            _renew_report(args.lora)


def _verify(args: argparse.Namespace) -> None:
    """Check the scores of known totals and defects.

    Raises:
        RuntimeError: If a score is wrong.
    """
    from ..config import VBenchConfig, from_dict, read_settings
    from ..config.resources import find_evaluation

    settings = read_settings(find_evaluation(args.config), args.set) if args.config else {}
    from ..scoring.vbench_verify import verify

    if not verify(from_dict(VBenchConfig, settings)):
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
    if args.preflight:
        print(checked.describe())
    else:
        image_run.run(config, checked, args.lora, output_dir(args, "images"))
        _renew_report(args.lora)


def score_shapes(args: argparse.Namespace) -> None:
    """Score the student of a run and its teacher, or one sampler, on the shapes world.

    Args:
        args: Options of `tdmvid score shapes`.

    Raises:
        ValueError: If the run or an option is invalid.
    """
    from ..adapters.bundle import ADAPTER_FILES, read_facts
    from ..adapters.teacher import load_teacher
    from ..config import ModelConfig, from_dict
    from ..data.files import write_json
    from ..shapes import TEACHER, evaluate

    protocol = evaluate.Protocol(args.captions, args.seeds, args.reference, args.seed, args.batch)
    if args.run:
        config = _read_run(args.run)
        samplers, model = evaluate.run_samplers(args.run, config), config["model"]
        facts = read_facts(evaluate.student_of(args.run, config))
    else:
        name = f"{args.steps} steps, cfg {args.cfg:g}"
        samplers = [evaluate.ScoredSampler(name, args.steps, args.cfg, args.lora)]
        facts = read_facts(args.lora) if args.lora else {}
        model = facts.get("model", {}) | {"path": args.model or str(TEACHER)}
    # always in float32, regardless of the dtype of the run
    base = {"path": model["path"], "adapters": model.get("adapters", ())}
    trained = facts.get(ADAPTER_FILES)
    backbone = load_teacher(from_dict(ModelConfig, base, "model"), evaluate.SIZE, trained=trained)
    scores = evaluate.evaluate(backbone, samplers, protocol)
    if args.json:
        write_json(args.json, scores)
    if args.run:
        _report_shapes(args.run, config, scores)


def _read_run(run: Path) -> dict:
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{run} is not a run folder, because it has no config.json: choose another --run"
        )
    return read_json(path)


def _report_shapes(run: Path, config: dict, scores: dict) -> None:
    """Write the scores to the run folder, and update its report."""
    from ..data.files import write_json
    from ..report.page import write_report
    from ..sampling.student import weights_of
    from ..shapes import evaluate

    checks = evaluate.checks(scores["samplers"])
    weights = weights_of(evaluate.student_of(run, config))
    write_json(run / "scores.json", scores | {"checks": checks, "weights": weights})
    for check in checks:
        print(f"{'passed' if check['passed'] else 'FAILED'}  {check['claim']}: {check['value']}")
    print(f"report: {write_report(run)}")


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
