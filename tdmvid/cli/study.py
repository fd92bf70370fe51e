"""Make a blind A/B study of two sample folders, count its votes, or fit a reward to them.

    tdmvid study make --a ours --b theirs --out study.html     # two folders of `tdmvid sample`
    tdmvid study tally --key study.key.json votes-*.json
    tdmvid study fit --key study.key.json --a ours --b theirs --out liked.safetensors votes-*.json
    python eval/user_study.py make --a ours --b theirs --out study.html

The page is one file that works without a server, by keyboard or touch. Participants send back the
JSON file that it saves. Keep study.key.json, which maps the sides to the folders, to yourself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.paths import expand_home
from .given import refuse_ignored
from .options import add_verbose, output_file, refuse_inputs

QUESTION = "Which of the two is the better video of this text? Look at both before you choose."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tdmvid study` and their options to a parser."""
    commands = parser.add_subparsers(required=True, metavar="{make,tally,fit}")
    page = commands.add_parser("make", help="write the page and its key")
    page.add_argument("--a", type=Path, required=True, help="folder written by `tdmvid sample`")
    page.add_argument("--b", type=Path, required=True, help="folder to compare with")
    page.add_argument("--name-a", default="", help="name of --a in the key (default: the folder)")
    page.add_argument("--name-b", default="", help="name of --b in the key (default: the folder)")
    page.add_argument(
        "--pairs", type=int, default=0, help="number of pairs, from the first; 0 uses all"
    )
    page.add_argument("--title", default="Which video is better?", help="title of the page")
    page.add_argument("--question", default=QUESTION, help="question that the page asks")
    page.add_argument(
        "--send-to",
        default="",
        metavar="TEXT",
        help="recipient of the vote files, e.g. a mail address (default: the sender of the page)",
    )
    page.add_argument(
        "--out",
        type=output_file,
        default=Path("study.html"),
        help="HTML file to write; another study is not replaced",
    )
    page.set_defaults(function=make)
    add_verbose(page)
    votes = commands.add_parser("tally", help="count votes")
    votes.add_argument("--key", type=Path, required=True, help="key file that `make` wrote")
    votes.add_argument("--json", type=output_file, help="write the counts to this file")
    votes.add_argument("votes", type=Path, nargs="+", help="JSON files from participants")
    votes.set_defaults(function=count)
    add_verbose(votes)
    _add_fit(commands.add_parser("fit", help="fit a reward to votes (see docs/rewards.md)"))


def _add_fit(reward: argparse.ArgumentParser) -> None:
    reward.add_argument("--key", type=Path, required=True, help="key file that `make` wrote")
    reward.add_argument("--a", type=Path, required=True, help="folder that was --a of `make`")
    reward.add_argument("--b", type=Path, required=True, help="folder that was --b of `make`")
    reward.add_argument(
        "--features",
        choices=["measures", "shapes", "clip"],
        default="clip",
        help="what the reward is a linear function of (default: clip)",
    )
    reward.add_argument(
        "--model", type=expand_home, default="", help="folder or hub name of the CLIP model"
    )
    reward.add_argument(
        "--pairs", type=output_file, help="write the votes on each pair to this file"
    )
    reward.add_argument("--out", type=output_file, required=True, help="safetensors file to write")
    reward.add_argument("votes", type=Path, nargs="+", help="JSON files from participants")
    reward.set_defaults(function=fit)
    add_verbose(reward)


def run(args: argparse.Namespace) -> None:
    """Run the chosen command.

    Args:
        args: Options of the command.
    """
    args.function(args)


def make(args: argparse.Namespace) -> None:
    """Write the page and its key.

    Args:
        args: Options of `tdmvid study make`.

    Raises:
        ValueError: If the folders cannot be paired, or --out is another study.
    """
    from ..scoring.study import SENDER, pair_samples, write_study

    questions = pair_samples(args.a, args.b)[: args.pairs or None]
    names = (args.name_a or str(args.a), args.name_b or str(args.b))
    write_study(
        args.out,
        questions,
        title=args.title,
        question=args.question,
        names=names,
        send_to=args.send_to or SENDER,
    )
    size = args.out.stat().st_size / 2**20
    print(
        f"{args.out}: {len(questions)} pairs, {size:.1f} MiB; do not share"
        f" {args.out.with_suffix('.key.json')}"
    )


def count(args: argparse.Namespace) -> None:
    """Count the votes and print the result.

    Args:
        args: Options of `tdmvid study tally`.

    Raises:
        ValueError: If a file is invalid, or would be replaced.
    """
    refuse_inputs(args, ["json"], [args.key, *args.votes])
    from dataclasses import asdict

    from ..data.files import write_json
    from ..scoring.study import describe, read_ballots, read_votes, tally

    key = read_votes(args.key, "study", "pairs", "A", "B")
    votes = tally(key, read_ballots(args.votes))
    print(describe(key, votes))
    if args.json:
        write_json(args.json, asdict(votes))


def fit(args: argparse.Namespace) -> None:
    """Fit a reward to the votes and write it.

    Args:
        args: Options of `tdmvid study fit`.

    Raises:
        ValueError: If a file is invalid or would be replaced, or there are too few votes.
    """
    refuse_inputs(args, ["pairs", "out"], [args.key, *args.votes])
    if args.features != "clip":
        refuse_ignored(args, ["model"], f"with --features {args.features}")
    from ..rewards.votes import fit_head, save_head, votes_on_pairs, write_pairs
    from ..scoring.study import read_ballots, read_votes, tally

    key = read_votes(args.key, "study", "pairs", "A", "B")
    votes = tally(key, read_ballots(args.votes))
    pairs = votes_on_pairs(key, votes, args.a, args.b)
    if args.pairs:
        write_pairs(args.pairs, pairs)
    head = fit_head(pairs, args.features, args.model)
    save_head(args.out, head)
    share = head.agreement
    print(
        f"{args.out}: agrees with {share.text('.0f', scale=100, unit=' %')} of the pairs of prompts"
        " that it was not fitted to (95 %, Wilson)"
    )
