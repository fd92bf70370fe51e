"""Score a student beside its teacher, or samplers on the shapes world.

    eval/setup_vbench.sh                                                  # once
    tdmvid score vbench                                     # the newest finished run in runs/
    tdmvid score vbench --config vbench_cogvideox2b --preflight    # what is missing
    tdmvid score vbench --config vbench_cogvideox2b --download     # fetches it
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    tdmvid score images --config images --lora runs/X/lora
    tdmvid score shapes --run runs/shapes_4nfe
    tdmvid score samples videos teacher                     # motion, colour, diversity
    tdmvid score modes runs/A/lora runs/B/lora --prompt "a red ring" --out modes
    tdmvid score conditions runs/X/lora --prompt "a red ring" --cfg 2 --out grid
    tdmvid score --compare A/vbench B/vbench                # results of two machines or versions
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

`tdmvid score vbench --help` and its siblings explain one of them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.json_files import read_json
from . import conditions, modes
from .options import add_evaluation, add_verbose, output_dir

if TYPE_CHECKING:
    from ..scoring.preflight import Preflight

Command = Callable[[argparse.Namespace], None]
VBENCH = """VBench of a student beside its teacher.

    tdmvid score vbench                                     # the newest finished run in runs/
    tdmvid score vbench --config vbench_cogvideox2b --preflight    # what is missing
    tdmvid score vbench --config vbench_cogvideox2b --download     # fetches it
    tdmvid score vbench --config vbench_cogvideox2b --lora runs/X/lora
    tdmvid score vbench --verify                            # known answers: totals and defects
    torchrun --nproc_per_node 8 -m tdmvid score vbench --config ... --lora runs/X/lora
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --lora runs/X/lora

Killed or out of time, the same command goes on where it was. Dimensions whose weights are not there
are left out and named; a total appears only where all sixteen were scored.
"""
IMAGES = """Image metrics of a student beside its teacher.

    tdmvid score images                                     # the newest finished run in runs/
    tdmvid score images --config images --preflight
    tdmvid score images --config images --lora runs/X/lora
    torchrun --nproc_per_node 8 -m tdmvid score images --config images --lora runs/X/lora
    python eval/image_run.py --config eval/configs/images.json --lora runs/X/lora

The student's FID to its own teacher says how much of the teacher's style it kept. Measures whose
weights or libraries are not there are left out and named.
"""
SHAPES = """Score samplers on the shapes world.

    tdmvid score shapes --run runs/shapes_4nfe
    tdmvid score shapes --steps 8 --cfg 3
    tdmvid score shapes --lora runs/shapes_4nfe/lora --steps 4 --cfg 1
    python eval/shapes_run.py --run runs/shapes_4nfe

Captions are held out, seeds are fixed, and the noise is the same for all. --run scores a run's
student beside its teacher and renews the run's report. Every sampler is the STOCK diffusers
pipeline, with the LoRA and the scheduler that the run exported.
"""
SAMPLES = """Motion, colour, sharpness and diversity of folders of samples, without network weights.

    tdmvid score samples videos
    tdmvid score samples videos teacher --json measures.json

Any folder of videos or images of one size will do. Where it has no manifest.jsonl of `tdmvid
sample`, files that differ in the number at the end of their names alone are seeds of one prompt.
Intervals are a bootstrap over prompts.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tdmvid score` with their options."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="compare the results.json of two evaluations, or refuse where their protocols differ",
    )
    parser.set_defaults(function=score_nothing)
    commands = parser.add_subparsers(metavar="{vbench,images,shapes,samples,modes,conditions}")
    vbench = _add(commands, "vbench", VBENCH, score_vbench)
    add_evaluation(vbench, example="vbench_cogvideox2b", folder="vbench")
    vbench.add_argument(
        "--download",
        action="store_true",
        help="fetch the weights that dimensions lack, say what can be scored then, and stop",
    )
    vbench.add_argument(
        "--verify",
        action="store_true",
        help="check the chain against published totals and videos with known defects, and stop",
    )
    vbench.add_argument(
        "--stage",
        choices=["all", "sample", "score"],
        default="all",
        help="sample alone, or score what was sampled",
    )
    images = _add(commands, "images", IMAGES, score_images)
    add_evaluation(images, example="images", folder="images")
    _add_shapes(_add(commands, "shapes", SHAPES, score_shapes))
    samples = _add(commands, "samples", SAMPLES, score_samples)
    samples.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    samples.add_argument(
        "--limit", type=int, default=0, help="files of each folder; 0 (default) takes all"
    )
    samples.add_argument("--json", type=Path, help="write the scores here")
    modes.add_arguments(_add(commands, "modes", modes.__doc__ or "", modes.run))
    conditions.add_arguments(_add(commands, "conditions", conditions.__doc__ or "", conditions.run))


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", type=Path, help="a run folder: scores go to its scores.json and report.html"
    )
    parser.add_argument("--model", help="a diffusers folder (default: the embedded teacher)")
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


def _add(
    commands: argparse._SubParsersAction, name: str, text: str, function: Command
) -> argparse.ArgumentParser:
    """Add one command; its function is called with the parsed options."""
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
    """Run the chosen command."""
    if args.compare:
        from ..scoring.compare import compare

        if args.function is not score_nothing:
            raise ValueError("--compare reads results that are there: leave the other command out")
        print(compare(*args.compare))
        return
    args.function(args)


def score_nothing(args: argparse.Namespace) -> None:
    """Refuse a line that names neither a command nor results."""
    raise ValueError(
        "choose vbench, images, shapes, samples, modes or conditions, or give --compare A B"
    )


def _read_config(kind: type, args: argparse.Namespace) -> Any:
    """Return the evaluation's config; called before torch is imported, so that a typo is reported
    at once.
    """
    from ..config import from_dict, read_settings
    from ..config.resources import find_evaluation

    return from_dict(kind, read_settings(find_evaluation(args.config), args.set))


def _choose(args: argparse.Namespace, kind: type, program: str) -> None:
    """Take the newest finished run, and the config of its family, where none was named, and say so;
    see scoring/finished_runs.py.
    """
    if args.config:
        _read_config(kind, args)  # a typo in what was named comes first
    if args.config and (args.lora or args.preflight or getattr(args, "download", False)):
        return
    from ..adapters.bundle import read_facts
    from ..scoring.finished_runs import evaluation_of, newest_student, read_student, size_overrides

    newest = ""
    if args.lora:
        read_facts(args.lora)  # refuses what is no student's folder
        student = read_student(args.lora)
    else:
        student, count = newest_student(program)
        args.lora = student.folder
        newest = f", the newest of {count} finished run{'s' * (count != 1)}"
    if not args.config:
        args.config = evaluation_of(student, program)
        if program == "vbench":
            args.set = [*size_overrides(student.size, args.config), *args.set]
    if os.environ.get("RANK", "0") == "0":
        changed = "".join(f" --set {override}" for override in args.set)
        print(f"scores {args.lora}{newest}, by --config {args.config}{changed}", flush=True)


def _renew_report(student: Path) -> None:
    """Put the results into the report of the student's run, if it lies in one."""
    if os.environ.get("RANK", "0") != "0" or not (student.parent / "config.json").is_file():
        return
    from ..report.page import REPORT, write_report

    if (student.parent / REPORT).is_file():
        print(f"report: {write_report(student.parent)}")


def score_vbench(args: argparse.Namespace) -> None:
    """Sample both sides, score them by the VBench package and compare; or say what could be."""
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
        evaluation.environment.find_python()  # refused before anything is sampled
    if not args.preflight:
        out = output_dir(args, "vbench")
        vbench_run.run(evaluation, args.lora, out, stage=args.stage)
        if args.stage != "sample":
            _renew_report(args.lora)


def _verify(args: argparse.Namespace) -> None:
    """Check the chain against known answers.

    Raises:
        RuntimeError: if one is wrong.
    """
    from ..config import VBenchConfig, from_dict, read_settings
    from ..config.resources import find_evaluation

    settings = read_settings(find_evaluation(args.config), args.set) if args.config else {}
    from ..scoring.vbench_verify import verify

    if not verify(from_dict(VBenchConfig, settings)):
        raise RuntimeError("VBench's chain gives a wrong answer: see the lines marked WRONG")


def _download(checked: Preflight, python: Path) -> None:
    """Fetch what is missing; what cannot be had is said, and left out of the scoring."""
    from ..scoring.vbench_download import download

    for path, reason in download(checked, python).items():
        print(f"not fetched: {path} ({reason})")


def score_images(args: argparse.Namespace) -> None:
    """Sample both sides, measure them and compare; or say what could be measured."""
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
    """Score a run's student beside its teacher, or one sampler."""
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
    # in float32, whatever the run computed in
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
        raise ValueError(f"{run} is no run folder: it has no config.json")
    return read_json(path)


def _report_shapes(run: Path, config: dict, scores: dict) -> None:
    """Write the scores into the run's folder and renew its report."""
    from ..data.files import write_json
    from ..report.page import write_report
    from ..sampling.student import weights_of
    from ..shapes import evaluate

    checks = evaluate.checks(scores["samplers"])
    weights = weights_of(evaluate.student_of(run, config))
    write_json(run / "scores.json", scores | {"checks": checks, "weights": weights})
    for check in checks:
        print(f"{'kept  ' if check['passed'] else 'MISSED'}  {check['claim']}: {check['value']}")
    print(f"report: {write_report(run)}")


def score_samples(args: argparse.Namespace) -> None:
    """Measure folders of samples and print them side by side."""
    from ..data.files import write_json
    from ..scoring.sample_folders import describe, score_folder

    scored = [score_folder(folder, limit=args.limit) for folder in args.folders]
    print(describe(scored))
    if args.json:
        write_json(args.json, {"folders": [one.facts() for one in scored]})
