"""Measure what a reward did to students of the embedded teacher.

    python -m examples.shapes.second_judge --out build/second_judge.safetensors
    PYTHONPATH=. python eval/shapes_reward.py --judge build/second_judge.safetensors \\
        --out runs/reward --subset clear \\
        --samplers teacher plain=runs/plain/lora rewarded=runs/rewarded/lora \\
        --pairs rewarded:plain --page reward.md --picture reward.png

Every sampler gets the same held-out captions and the same noise. Shares, diversity and the Fréchet
distance are those of the second judge, which no run was trained with. Every sampler is stored in
--out when it is finished, so a later call continues, and can compare more students.

Which population an interval (95 %) speaks of:

* Shares, their differences and diversity: other captions of this kind, with new noise. All videos
  of a distinct caption are resampled together. Only 13 captions of one object are held out; more of
  them repeat with new noise, which adds videos but no captions. With 13, the intervals are 14 %
  narrower than Student's.
* "These captions": new noise for exactly the captions of the table. It says nothing of others. More
  --captions of one object and more --seeds make it narrower.
* Fréchet distance: videos. That two samplers share their noise is not used, which usually widens
  the interval of their difference.

Differences are paired: both samplers have the same caption and noise. No interval contains how much
another training run of the same settings would differ.

Shapes: N videos [N, 3, F, H, W]; G captions.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from reward_samplers import check_names, load_base, read_pair, read_samplers, strength_of
from reward_tables import SHARES, describe_pairs, describe_rows
from rewarded_videos import (
    Judged,
    Things,
    compare_frechet,
    judged,
    pool,
    ratio_of_diversity,
    sample,
    write_picture,
)
from torch import Tensor

from ablations.rewards import log_odds, tilted
from examples.shapes.second_judge import SecondJudge, load_second_judge
from tdmvid.backbones.base import Backbone
from tdmvid.cli.given import parse_options, refuse_ignored
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_options
from tdmvid.config.paths import expand_home
from tdmvid.data.files import file_fingerprint, write_json
from tdmvid.sampling.student import weights_of
from tdmvid.scoring.intervals import (
    Measure,
    mean_over_groups,
    mean_over_samples,
)
from tdmvid.shapes import TEACHER, metrics, score, world
from tdmvid.shapes.evaluate import ScoredSampler

SUBSETS = {"clear": "clear", "correct": "all", "bright": "bright"}
"""Choices of --subset, and their measures."""
PAIR_SHARES = {"any": world.PAIR_SHARE, "one": 0.0, "two": 1.0}
"""Choices of --objects, and the share of captions with two objects."""
OBJECTS = {"any": "", "one": " of one object", "two": " of two objects"}


def measure_all(args: argparse.Namespace, samplers: list[ScoredSampler]) -> dict[str, Judged]:
    """Sample and judge, as far as an earlier call has not, and pool the evaluations of all seeds.

    Args:
        args: Options of the command.
        samplers: The samplers.

    Returns:
        Videos and measures by name; "ground truth" first.
    """
    judge, backbone = load_second_judge(args.judge), load_base(samplers, args.model)
    found = [measure_seed(args, samplers, judge, backbone, seed) for seed in args.seed]
    return {name: pool([one[name] for one in found]) for name in found[0]}


def measure_seed(
    args: argparse.Namespace,
    samplers: list[ScoredSampler],
    judge: SecondJudge,
    backbone: Backbone,
    seed: int,
) -> dict[str, tuple[Judged, Things]]:
    """Sample and judge the captions of one seed, as far as an earlier call has not.

    Args:
        args: Options of the command.
        samplers: The samplers.
        judge: The second judge.
        backbone: The base of all samplers.
        seed: Seed of captions and noise.

    Returns:
        Videos and measures by name, and the objects of their captions; "ground truth" first.
    """
    folder = args.out / f"seed_{seed}"
    things = score.evaluation_set(
        args.captions, args.seeds, seed, pair_share=PAIR_SHARES[args.objects]
    )
    if score.number_captions(things).bincount().min() < 2:
        raise ValueError(
            f"--seeds {args.seeds}: each caption needs two videos to compare: use at least 2"
        )
    common = _protocol(args, backbone, seed)
    wanted = [things[index % len(things)] for index in range(args.reference)]

    def truth() -> Tensor:
        videos = world.draw_videos(wanted, torch.Generator().manual_seed(seed + 1))
        return (videos * 127.5 + 127.5).round().to(torch.uint8)

    facts = common | {"reference": args.reference}
    path = folder / "truth.safetensors"
    found = {"ground truth": (judged(path, facts, wanted, judge, truth), wanted)}
    for sampler in samplers:
        weights = weights_of(sampler.student) if sampler.student else "teacher"
        facts = common | {"steps": sampler.steps, "cfg": sampler.cfg, "weights": weights}

        def draw(sampler: ScoredSampler = sampler) -> Tensor:
            return sample(backbone, sampler, things, seed + 2)

        path = folder / f"{sampler.name}.safetensors"
        found[sampler.name] = judged(path, facts, things, judge, draw), things
    return found


def _protocol(args: argparse.Namespace, backbone: Backbone, seed: int) -> dict:
    """Return what determines the videos of a sampler beside its weights and steps."""
    base = backbone.config.path
    other = {"base": base, "adapters": repr(backbone.config.adapters)}
    return {
        "captions": args.captions,
        "objects": args.objects,
        "seeds": args.seeds,
        "seed": seed,
        "judge": file_fingerprint([args.judge]),
        **(other if base != str(TEACHER) else {}),
    }


def row_of(one: Judged, subset: str) -> dict:
    """Compute the measures of one sampler.

    Args:
        one: Its videos.
        subset: Measure that was rewarded, which is also given for one and for two objects.

    Returns:
        Measures by name, with intervals over captions.
    """
    found = {name: mean_over_groups(one.measured[name].double(), one.group) for name in SHARES}
    found["diversity"] = metrics.diversity(one.measured["features"], one.group)
    found["flicker"] = mean_over_groups(one.measured["flicker"], one.group)
    for name, kind in (("one", ~one.pairs), ("two", one.pairs)):
        if kind.any():
            group = one.group[kind].unique(return_inverse=True)[1]
            shares = one.measured[subset][kind].double()
            found[f"{subset}, {name}"] = mean_over_groups(shares, group)
    return found


def share_above(ours: Judged, theirs: Judged, subset: str) -> Measure:
    """Return the difference of the shares in a subset, paired by caption and noise.

    Args:
        ours: Videos of one sampler.
        theirs: Videos of another sampler with the same captions.
        subset: Measure of the subset.

    Returns:
        Difference of the means over videos, with an interval over captions.
    """
    return mean_over_groups(_differences(ours, theirs, subset), ours.group)


def share_above_here(ours: Judged, theirs: Judged, subset: str) -> Measure:
    """Return the difference of the shares for exactly these captions, paired by caption and noise.

    Args:
        ours: Videos of one sampler.
        theirs: Videos of another sampler with the same captions.
        subset: Measure of the subset.

    Returns:
        Difference of the means over videos, with an interval over the noise.
    """
    return mean_over_samples(_differences(ours, theirs, subset), ours.group)


def _differences(ours: Judged, theirs: Judged, subset: str) -> Tensor:
    """Return 1, 0 or -1 for each video [N]: whether only ours, or only theirs, is in a subset."""
    both = [one.measured[subset].double() for one in (ours, theirs)]
    return both[0] - both[1]


def compare_pair(
    found: dict[str, Judged], ours: str, theirs: str, strength: float | None, subset: str
) -> dict:
    """Compare a rewarded student with the plain one, and with the teacher if it is there.

    Args:
        found: Videos by name.
        ours: Name of the rewarded student.
        theirs: Name of the plain student.
        strength: Strength of the reward; None without one, which leaves out what it predicts.
        subset: Measure that was rewarded.

    Returns:
        The comparison by name.
    """
    a, b = found[ours], found[theirs]
    with_reward, without = (one.measured[subset].double().mean().item() for one in (a, b))
    count = len(a.group)
    out = {
        "pair": f"{ours} against {theirs}",
        "share": with_reward,
        "plain share": without,
        "above plain": asdict(share_above(a, b, subset)),
        "above plain, these captions": asdict(share_above_here(a, b, subset)),
        "diversity": asdict(ratio_of_diversity(a, b)),
        "diversity in subset": asdict(ratio_of_diversity(a, b, subset)),
    }
    if strength:
        moved = log_odds(with_reward, count) - log_odds(without, count)
        out |= {"expected share": tilted(without, strength, count), "arriving": moved / strength}
    if "teacher" in found:
        teacher = found["teacher"]
        out["above teacher"] = asdict(share_above(a, teacher, subset))
        out["above teacher, these captions"] = asdict(share_above_here(a, teacher, subset))
    for name, which in (("frechet", ""), ("frechet in subset", subset)):
        distances = compare_frechet(a, b, found["ground truth"], which)
        out[name] = distances | {"difference": asdict(distances["difference"])}
    return out


def run(args: argparse.Namespace) -> None:
    """Measure, compare, and write the results.

    Args:
        args: Options of the command.

    Raises:
        ValueError: An option is invalid.
    """
    check_options(vars(args))
    if not args.picture:
        remedy = "add --picture, or remove it"
        refuse_ignored(args, ["shown", "pictured"], "without --picture", remedy=remedy)
    if len(set(args.seed)) < len(args.seed):
        raise ValueError(f"--seed {' '.join(map(str, args.seed))}: give each seed once")
    by_name = read_samplers(args.samplers)
    pairs = [read_pair(text, by_name) for text in args.pairs]
    check_names("--shown", args.shown or (), by_name)
    found, subset = measure_all(args, list(by_name.values())), SUBSETS[args.subset]
    rows = {
        name: {key: asdict(value) for key, value in row_of(one, subset).items()}
        for name, one in found.items()
    }
    compared = [compare_pair(found, *pair, strength_of(by_name[pair[0]]), subset) for pair in pairs]
    group = found[next(iter(by_name))].group
    distinct = int(group.max()) + 1
    said = (
        f"{args.captions} held-out captions{OBJECTS[args.objects]} ({distinct} distinct)"
        f" x {args.seeds} seeds, {len(group)} videos per sampler, the same noise for every sampler"
        f" (--seed {' '.join(map(str, args.seed))});"
        f" {args.reference * len(args.seed)} ground-truth videos of the same captions"
    )
    text = f"{said}.\n\n{describe_rows(rows, subset)}\n\n{describe_pairs(compared)}\n"
    print(text)
    write_json(
        args.out / f"{args.subset}.json", {"protocol": said, "rows": rows, "pairs": compared}
    )
    if args.page:
        args.page.write_text(text)
    if args.picture:
        write_picture(args.picture, found, args.shown or list(by_name), args.pictured)


def main() -> None:
    """Run the command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", type=Path, required=True, help="weights of the second judge")
    parser.add_argument(
        "--samplers", nargs="+", required=True, metavar="NAME=FOLDER", help="teacher, NAME=FOLDER"
    )
    parser.add_argument(
        "--model",
        type=expand_home,
        help="diffusers folder or hub id of the base (default: the one that the students name)",
    )
    parser.add_argument(
        "--pairs", nargs="*", default=[], metavar="REWARDED:PLAIN", help="samplers to compare"
    )
    parser.add_argument("--subset", choices=[*SUBSETS], default="clear", help="what was rewarded")
    parser.add_argument(
        "--objects", choices=[*PAIR_SHARES], default="any", help="captions to use (any)"
    )
    parser.add_argument(
        "--captions",
        type=int,
        default=128,
        help=f"held-out captions (128); the {score.SINGLES} of one object repeat",
    )
    parser.add_argument("--seeds", type=int, default=4, help="videos per caption (4)")
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        default=[28],
        help="seed of captions and noise (28); the evaluations of several seeds are pooled",
    )
    parser.add_argument("--reference", type=int, default=1024, help="ground-truth videos (1024)")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--page", type=Path, help="write the tables to this Markdown file")
    parser.add_argument("--picture", type=Path, help="write videos of all samplers to this PNG")
    parser.add_argument("--shown", nargs="+", help="samplers in the picture (default: all)")
    parser.add_argument("--pictured", type=int, default=2, help="captions of each size in it")
    run(parse_options(parser))


if __name__ == "__main__":
    run_program(main)
