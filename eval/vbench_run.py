"""VBench of a student beside its teacher: sample, score with the real package, compare prompt by
prompt.

    eval/setup_vbench.sh                                                             # once
    python eval/vbench_run.py --config eval/configs/vbench_cogvideox2b.json --preflight
    python eval/vbench_run.py --lora runs/X/lora --config eval/configs/vbench_cogvideox2b.json
    torchrun --nproc_per_node 8 eval/vbench_run.py --lora runs/X/lora --config ...

Killed or out of time, the same command goes on where it was. Dimensions whose weights are not
there are left out and named; a total appears only where all sixteen were scored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tdmvid.cli.options import add_evaluation, place  # noqa: E402
from tdmvid.config.run import from_dict, read_settings, to_dict  # noqa: E402
from tdmvid.data.files import write_json  # noqa: E402
from tdmvid.parallel import launch  # noqa: E402
from tdmvid.scoring.results import Pair, Result, write_result  # noqa: E402
from tdmvid.scoring.sides import NAMES, check_sides, foreign, sample_sides, sampled  # noqa: E402
from tdmvid.scoring.suite import Entry, VBenchConfig, check_videos, files_of, load_suite, shots_of  # noqa: E402
from tdmvid.scoring.vbench import DIMENSIONS, Bootstrap, Scores  # noqa: E402
from tdmvid.scoring.vbench_runner import Environment, ready, score_folder  # noqa: E402
from tdmvid.scoring.weights import Preflight  # noqa: E402


def score(
    out: Path, config: VBenchConfig, entries: list[Entry], checked: Preflight
) -> dict[str, Scores]:
    """Scores of both samplers, on every GPU that is there."""
    files = [shot.file for shot in shots_of(entries, config.video.frames)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(
        ","
    )  # the numbers of a share of a machine's GPUs, where this process has a share
    devices = [
        visible[index] if index < len(visible) and visible[index] else str(index)
        for index in range(torch.cuda.device_count())
    ] or ["cpu"]
    digests, scores = {name: check_videos(out / name, files, config.video) for name in NAMES}, {}
    for name in NAMES:
        scores[name] = score_folder(
            out / name, out / "scoring" / name, config, entries, checked, digests[name], devices
        )
        print(f"{name}: {', '.join(checked.ready)} scored on {len(files)} videos")
    return scores


def compare(
    out: Path,
    config: VBenchConfig,
    entries: list[Entry],
    checked: Preflight,
    scores: dict[str, Scores],
    *,
    said: tuple[str, ...] = (),
) -> Path:
    """results.json, .md and .html; said: what else a reader must know."""
    prompts = {
        file: entry.prompt for entry in entries for file in files_of(entry, config.video.frames)
    }
    dimensions: dict[str, frozenset[str]] = {}
    for entry in entries:
        dimensions[entry.prompt] = dimensions.get(entry.prompt, frozenset()) | set(entry.dimensions)
    bootstrap = Bootstrap(prompts, dimensions)
    student, teacher = (scores[name] for name in NAMES)
    warnings = notes(config, checked)
    measures = (
        bootstrap.measures(student),
        bootstrap.measures(teacher),
        bootstrap.differences(student, teacher),
    )
    if warnings:  # the totals of part of the suite look like those of the whole
        measures = tuple(
            {name: side[name] for name in side if name in DIMENSIONS} for side in measures
        )
    result = Result(
        title=f"VBench{'-Long' if config.long else ''}: {out.resolve().parent.name}",
        protocol=protocol(config, entries),
        notes=(*warnings, *gaps(student, teacher, measures[2]), *said),
        names=NAMES,
        scores=measures[:2],
        differences=measures[2],
        facts=sampled(out)
        | {
            "config": to_dict(config),
            "videos_scored": {name: [len(student[name]), len(teacher[name])] for name in student},
            "left_out": {
                name: [need.path for need in needs] for name, needs in checked.missing.items()
            },
        },
    )
    page = write_result(out, result, _pairs(out, prompts, student, teacher), shown=config.pairs)
    print((out / "results.md").read_text())
    return page


def protocol(config: VBenchConfig, entries: list[Entry]) -> str:
    """How the figures came about, in a sentence or two."""
    suite = config.prompts if config.custom else "VBench's suite"
    shown = f", sampled from {config.augmented}" if config.augmented else ""
    size = config.video
    return (
        f"{len({entry.prompt for entry in entries})} prompts of {suite}{shown}, {config.seeds}"
        f" seeds each, the same noise for both; {size.frames} frames of {size.height} x"
        f" {size.width} at {size.fps} fps; teacher in {config.teacher.steps} steps with guidance"
        f" {config.teacher.cfg:g}; vbench 0.1.5{', VBench-Long' if config.long else ''}; 95 %"
        " bootstrap intervals over prompts, the difference paired."
    )


def notes(config: VBenchConfig, checked: Preflight) -> tuple[str, ...]:
    """What keeps these figures from being comparable with others'; empty for a whole run of
    VBench's protocol.
    """
    out = []
    lacking = [name for name in DIMENSIONS if name not in checked.ready]
    if lacking:
        out.append(
            f"Partial: {len(checked.ready)} of {len(DIMENSIONS)} dimensions. Not scored:"
            f" {', '.join(lacking)}."
        )
    if config.custom:
        out.append("Prompts of our own: not comparable with published VBench figures.")
    if config.limit:
        out.append(f"Only the first {config.limit} prompts of each group of dimensions.")
    if not config.custom and (config.seeds < 5 or config.static_seeds < 25):
        out.append(
            f"{config.seeds} videos a prompt, {config.static_seeds} for the static filter: VBench's"
            " protocol has 5 and 25."
        )
    if not config.custom and not config.static_filter and "temporal_flickering" in checked.ready:
        out.append("temporal_flickering is of unfiltered videos, unlike VBench's protocol.")
    return (*out, "So there is no total.") if out else ()


def gaps(student: Scores, teacher: Scores, compared: Collection[str]) -> tuple[str, ...]:
    """Why a dimension that was scored has no figure or no difference: the package leaves out videos
    that move, or lack the object.
    """
    out = []
    for name in student:
        empty = [side for side, scores in zip(NAMES, (student, teacher)) if not scores[name]]
        if empty:
            out.append(
                f"{name}: no video of the {' or the '.join(empty)} is static, as its filter wants:"
                " no score of it, no difference, no total."
            )
        elif name not in compared:
            out.append(
                f"{name}: of no prompt could videos of both be scored: no difference, and none of"
                " totals."
            )
    return tuple(out)


def _pairs(out: Path, prompts: dict[str, str], student: Scores, teacher: Scores) -> list[Pair]:
    """A pair for every prompt, of its first seed; the gain is the mean normalised one over its
    dimensions and seeds.
    """
    gains: dict[str, list[float]] = {}
    for name, videos in student.items():
        for file in videos.keys() & teacher[name].keys():
            scale = DIMENSIONS[name].high - DIMENSIONS[name].low
            gains.setdefault(prompts[file], []).append((videos[file] - teacher[name][file]) / scale)
    first = {prompt: file for file, prompt in reversed(prompts.items())}
    return [
        Pair(
            prompt,
            sum(gain) / len(gain),
            (out / NAMES[0] / first[prompt], out / NAMES[1] / first[prompt]),
        )
        for prompt, gain in gains.items()
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_evaluation(parser, example="eval/configs/vbench_cogvideox2b.json", folder="vbench")
    parser.add_argument(
        "--stage",
        choices=["all", "sample", "score"],
        default="all",
        help="sample alone, or score what was sampled",
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        config = from_dict(VBenchConfig, read_settings(args.config, args.set))
        environment = Environment(Path(config.environment))
        entries = load_suite(config, environment.full_info)
        checked = ready(config, entries)
        if args.preflight:
            print(checked.describe())
        if args.stage != "sample":
            environment.python  # what scores is asked for before anything is sampled
        if args.preflight:
            return
        if not checked.ready and args.stage != "sample":
            raise ValueError(f"no dimension can be scored:\n{checked.describe()}")
        out = place(args, "vbench")
        if args.stage != "score":
            world = launch.start(
                "auto", timeout_minutes=24 * 60
            )  # ranks wait for the slowest one's last video
            if world.primary:
                print(checked.describe(), flush=True)
            sample_sides(out, shots_of(entries, config.video.frames), config, args.lora, world)
            launch.finish()
            torch.cuda.empty_cache()
            if not world.primary:
                return
        elif int(os.environ.get("RANK", "0")):
            return  # the first process scores, on every GPU
        if args.stage != "sample":
            check_sides(out, config, args.lora)
            write_json(out / "config.json", to_dict(config))
            print(
                "results:"
                f" {compare(out, config, entries, checked, score(out, config, entries, checked), said=foreign(config, args.lora))}"
            )
    except (ValueError, OSError, RuntimeError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
