"""Make a blind A/B study of two sample folders: the page that people vote on, or the count.

    tdmvid study make --a ours --b theirs --out study.html     # two folders of `tdmvid sample`
    tdmvid study tally --key study.key.json votes-*.json
    python eval/user_study.py make --a ours --b theirs --out study.html

The page is one file that opens without a server, by keyboard or touch. People send back the JSON
that it saves; study.key.json, which says who is who, stays with you.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_verbose

QUESTION = "Which of the two is the better video of this text? Look at both before you choose."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tdmvid study` with their options."""
    commands = parser.add_subparsers(required=True, metavar="{make,tally}")
    page = commands.add_parser("make", help="write the page and its key")
    page.add_argument("--a", type=Path, required=True, help="a folder that `tdmvid sample` wrote")
    page.add_argument("--b", type=Path, required=True)
    page.add_argument("--name-a", default="")
    page.add_argument("--name-b", default="")
    page.add_argument("--pairs", type=int, default=0, help="only the first so many; 0 takes all")
    page.add_argument("--title", default="Which video is better?")
    page.add_argument("--question", default=QUESTION)
    page.add_argument(
        "--send-to",
        default="",
        metavar="TEXT",
        help="to whom people send the file of their votes, e.g. a mail address (default: the person"
        " who sent them the page)",
    )
    page.add_argument("--out", type=Path, default=Path("study.html"))
    page.set_defaults(function=make)
    add_verbose(page)
    votes = commands.add_parser("tally", help="count votes")
    votes.add_argument("--key", type=Path, required=True)
    votes.add_argument("--json", type=Path, help="write the counts here")
    votes.add_argument("votes", type=Path, nargs="+")
    votes.set_defaults(function=count)
    add_verbose(votes)


def run(args: argparse.Namespace) -> None:
    """Run the chosen command."""
    args.function(args)


def make(args: argparse.Namespace) -> None:
    """Write the page and its key."""
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
        f"{args.out}: {len(questions)} pairs, {size:.1f} MiB; keep"
        f" {args.out.with_suffix('.key.json')} to yourself"
    )


def count(args: argparse.Namespace) -> None:
    """Print what the votes say."""
    from dataclasses import asdict

    from ..data.files import write_json
    from ..scoring.study import describe, read_votes, tally

    key = read_votes(args.key, "study", "pairs", "A", "B")
    votes = tally(key, [(str(path), read_votes(path, "study", "votes")) for path in args.votes])
    print(describe(key, votes))
    if args.json:
        write_json(args.json, asdict(votes))
