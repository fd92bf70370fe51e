"""Write a list of prompts: generated captions, or a public data set on the hub.

    tdmvid prompts images:20000 --out images.txt        # 20,000 generated captions of images
    tdmvid prompts videos:5000:7 --out videos.txt       # 5,000 captions of videos with seed 7
    tdmvid prompts OWNER/NAME --column caption --limit 5000 --out set.jsonl

A run can also read these by name (prompts.path=videos:5000). A file can be inspected, edited, and
copied to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..config.paths import expand_home
from .options import output_file, refuse_ignored_of_prompts, refuse_inputs

OF_TABLES = ("column", "skip_empty", "subset", "split", "revision")
"""Options of tables and of data sets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid prompts` to a parser."""
    parser.add_argument(
        "source",
        type=expand_home,
        help="images:COUNT[:SEED], videos:COUNT[:SEED], hub id of a data set, or a file",
    )
    parser.add_argument(
        "--out",
        type=output_file,
        help=".txt or .jsonl file; a file with other prompts is not replaced (default: print one"
        " prompt per line)",
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="number of prompts, from the first; 0 uses all"
    )
    parser.add_argument("--column", default="prompt", help="column of a table (default: prompt)")
    parser.add_argument(
        "--skip-empty", action="store_true", help="skip empty values of a table, not refuse them"
    )
    parser.add_argument("--subset", default="", help="subset of a data set on the hub")
    parser.add_argument("--split", default="train", help="split of a data set on the hub")
    parser.add_argument("--revision", help="branch, tag or commit of a data set on the hub")


def run(args: argparse.Namespace) -> None:
    """Write or print the prompts.

    Args:
        args: Options of the command.

    Raises:
        ValueError: If the source or an option is invalid, or --out has other prompts.
    """
    from ..data.captioned import find_source
    from ..data.prompt_sets import HubSet
    from ..data.prompts import read_prompts

    if args.limit < 0:
        raise ValueError(f"--limit {args.limit} must be at least 0; 0 uses all prompts")
    if args.out and args.out.suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"--out {args.out} must be a .txt or .jsonl file")
    refuse_inputs(args, ["out"], [find_source(args.source)])
    part = HubSet(args.subset, args.split, args.revision)
    prompts = read_prompts(
        args.source,
        column=args.column,
        limit=args.limit,
        part=part,
        skip_empty=args.skip_empty,
    )
    refuse_ignored_of_prompts(args, args.source, OF_TABLES)
    prompts = prompts[: args.limit] if args.limit else prompts
    lines = (
        [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
        if args.out and args.out.suffix.lower() == ".jsonl"
        else [" ".join(prompt.split()) for prompt in prompts]
    )
    text = "".join(f"{line}\n" for line in lines)
    if not args.out:
        print(text, end="")
        return
    _write(args.out, text)
    print(f"wrote {len(prompts):,} prompts to {args.out}")


def _write(out: Path, text: str) -> None:
    """Write a file, but replace nothing that people may have written."""
    from ..data.files import write_text

    if out.exists() and out.read_bytes() != text.encode():
        raise ValueError(f"--out {out} exists with other prompts: choose another --out")
    write_text(out, text)
