"""A blind A/B study of two sample folders: the page that people vote on, and the count of their
votes.

    python eval/user_study.py make --a ours --b theirs --out study.html     # two folders of
    launch/sample.py
    python eval/user_study.py tally --key study.key.json votes-*.json

The page is one file that opens without a server, by keyboard or touch. People send back the JSON
that it saves; study.key.json, which says who is who, stays with you.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tdmvid.data.files import write_json  # noqa: E402
from tdmvid.scoring.study import Tally, pair_samples, tally, write_study  # noqa: E402


def describe(key: dict, votes: Tally) -> str:
    """The outcome in words."""
    lines = [
        f"{votes.people} people: {key['A']} {votes.a}, {key['B']} {votes.b}, no difference"
        f" {votes.same}"
    ]
    if votes.preferred is None:
        return f"{lines[0]}\nnobody preferred either"
    share = votes.preferred
    lines.append(
        f"{key['A']} preferred in {100 * share.value:.1f} % [{100 * share.low:.1f},"
        f" {100 * share.high:.1f}] of the votes that chose (95 %, Wilson)"
    )
    lines.append("one is preferred" if votes.decided else "undecided: the interval holds one half")
    return "\n".join(lines)


def make(args: argparse.Namespace) -> None:
    questions = pair_samples(args.a, args.b)[: args.pairs or None]
    names = tuple(
        name or str(folder) for name, folder in ((args.name_a, args.a), (args.name_b, args.b))
    )
    write_study(args.out, questions, title=args.title, question=args.question, names=names)
    size = args.out.stat().st_size / 2**20
    print(
        f"{args.out}: {len(questions)} pairs, {size:.1f} MiB; keep"
        f" {args.out.with_suffix('.key.json')} to yourself"
    )


def read(path: Path, *needed: str) -> dict:
    """The JSON object of a file that has these entries; ValueError names the file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict) or not all(name in found for name in needed):
        raise ValueError(
            f"{path} is no JSON with {', '.join(needed)}: give the files that `make` and the page"
            " saved"
        )
    return found


def count(args: argparse.Namespace) -> None:
    key = read(args.key, "study", "pairs", "A", "B")
    votes = tally(key, [(str(path), read(path, "study", "votes")) for path in args.votes])
    print(describe(key, votes))
    if args.json:
        write_json(args.json, asdict(votes))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    page = commands.add_parser("make", help="write the page and its key")
    page.add_argument("--a", type=Path, required=True, help="a folder that launch/sample.py wrote")
    page.add_argument("--b", type=Path, required=True)
    page.add_argument("--name-a", default="")
    page.add_argument("--name-b", default="")
    page.add_argument("--pairs", type=int, default=0, help="only the first so many; 0 takes all")
    page.add_argument("--title", default="Which video is better?")
    page.add_argument(
        "--question",
        default=(
            "Which of the two is the better video of this text? Look at both before you choose."
        ),
    )
    page.add_argument("--out", type=Path, default=Path("study.html"))
    page.set_defaults(run=make)
    votes = commands.add_parser("tally", help="count votes")
    votes.add_argument("--key", type=Path, required=True)
    votes.add_argument("--json", type=Path, help="write the counts here")
    votes.add_argument("votes", type=Path, nargs="+")
    votes.set_defaults(run=count)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    try:
        args.run(args)
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
