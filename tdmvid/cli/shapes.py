"""Score samplers on the shapes world.

    tdmvid score shapes --run runs/shapes_4nfe
    tdmvid score shapes --steps 8 --cfg 3
    tdmvid score shapes --lora runs/shapes_4nfe/lora
    python eval/shapes_run.py --run runs/shapes_4nfe

Captions are held out, seeds are fixed, and all samplers use the same noise. --run scores the
student of a run and its teacher, and updates the report of the run. --lora scores one student on
the base that its export.json names. Every sampler is the unmodified diffusers pipeline, with the
LoRA and the scheduler that the run exported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.embedded import TEACHER
from ..config.json_files import read_json
from ..config.paths import expand_home, find_run_config
from ..config.resources import find_model
from .given import refuse_ignored
from .options import output_file

TEACHER_STEPS = 50
"""Default number of sampling steps of the teacher."""
OF_THE_BASE = ("path", "revision", "variant", "pipeline", "adapters")
"""Settings of a model that are kept. The others have their defaults, for example float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid score shapes` to a parser."""
    parser.add_argument(
        "--run", type=Path, help="run folder; writes scores to its scores.json and report.html"
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        help="diffusers folder or hub id (default: the base of the student; the embedded teacher"
        " without --lora, or if the student names no base)",
    )
    parser.add_argument("--lora", type=Path, help="student to score (default: the teacher)")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"sampling steps (default: those of the student; {TEACHER_STEPS} for the teacher)",
    )
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


def run(args: argparse.Namespace) -> None:
    """Score the student of a run and its teacher, or one sampler, on the shapes world.

    Args:
        args: Options of `tdmvid score shapes`.

    Raises:
        ValueError: If the run or an option is invalid.
    """
    if args.run:
        refuse_ignored(
            args, ("model", "lora", "steps", "cfg"), "with --run, whose config has all samplers"
        )
    from ..adapters.bundle import ADAPTER_FILES, read_facts, require_facts
    from ..adapters.teacher import load_teacher
    from ..config import ModelConfig, from_dict
    from ..data.files import check_writable, write_json
    from ..shapes import evaluate

    protocol = evaluate.Protocol(args.captions, args.seeds, args.reference, args.seed, args.batch)
    if args.run:
        config = read_json(find_run_config(args.run))
        check_writable(args.run, "--run")
        samplers, model = evaluate.run_samplers(args.run, config), config["model"]
        facts = read_facts(evaluate.student_of(args.run, config))
    else:
        if args.lora:
            require_facts(args.lora, {"--steps": args.steps})
        facts = read_facts(args.lora) if args.lora else {}
        steps = _steps_of(args, facts)
        name = f"{steps} steps, cfg {args.cfg:g}"
        samplers = [evaluate.ScoredSampler(name, steps, args.cfg, args.lora)]
        model = model_of(args.lora, facts, args.model)
    # always in float32, regardless of the dtype of the run
    base, trained = from_dict(ModelConfig, kept(model), "model"), facts.get(ADAPTER_FILES)
    backbone = load_teacher(base, evaluate.SIZE, trained=trained)
    scores = evaluate.evaluate(backbone, samplers, protocol)
    if args.json:
        write_json(args.json, scores)
    if args.run:
        _report(args.run, config, scores)


def kept(model: dict) -> dict:
    """Return the settings of a model that scores depend on.

    Args:
        model: Settings of a run, or of a student's export.json.

    Returns:
        Those of `OF_THE_BASE`.
    """
    return {name: model[name] for name in OF_THE_BASE if name in model}


def _steps_of(args: argparse.Namespace, facts: dict) -> int:
    """Return the number of sampling steps: that of --steps, of the student, or of the teacher."""
    steps = facts.get("steps") if args.steps is None and args.lora else args.steps
    if steps is None and args.lora:
        raise ValueError(
            f"--steps is missing: {args.lora} does not state how many steps it was trained for: add"
            " --steps"
        )
    return TEACHER_STEPS if steps is None else steps


def model_of(student: Path | None, facts: dict, given: str | None) -> dict:
    """Return the settings of the model to score.

    Args:
        student: Folder of a student, for the message; None for a teacher.
        facts: The student's export.json; empty for a teacher.
        given: --model. It is used instead of the student's base, or of the embedded teacher.

    Returns:
        Settings of a model.

    Raises:
        ValueError: The student's base is not on this machine.
    """
    model: dict = facts.get("model", {})
    path = model.get("path") or str(TEACHER)
    if given and given != path:  # these settings are of the student's own base
        return model | {"path": given, "revision": None, "variant": None, "pipeline": None}
    place = Path(find_model(path))
    if place.is_absolute() and not place.exists():
        raise ValueError(
            f"{student} names the base {path!r}, which is not on this machine: add --model with"
            " its folder"
        )
    return model | {"path": path}


def _report(run: Path, config: dict, scores: dict) -> None:
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
