"""Write a list of prompts: generated captions, or a public set by its hub id.

    tdmvid prompts images:20000 --out images.txt        # 20,000 generated captions of images
    tdmvid prompts videos:5000:7 --out videos.txt       # 5,000 of videos, of seed 7
    tdmvid prompts OWNER/NAME --column caption --limit 5000 --out set.jsonl

A run reads all of these by name too (prompts.path=videos:5000); a file can be looked through,
changed, and taken to a machine without a network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tdmvid prompts`."""
    parser.add_argument(
        "source", help="images:COUNT[:SEED], videos:COUNT[:SEED], a data set's hub id, or a file"
    )
    parser.add_argument(
        "--out", type=Path, help="a .txt or .jsonl file (default: print one prompt a line)"
    )
    parser.add_argument("--limit", type=int, default=0, help="only the first so many; 0: all")
    parser.add_argument("--column", default="prompt", help="column of a table (default: prompt)")
    parser.add_argument("--subset", default="", help="subset of a set on the hub")
    parser.add_argument("--split", default="train", help="split of a set on the hub")
    parser.add_argument("--revision", help="branch, tag or commit of a set on the hub")


def run(args: argparse.Namespace) -> None:
    """Write or print the prompts."""
    from ..data.files import write_text
    from ..data.prompt_sets import HubSet
    from ..data.prompts import read_prompts

    if args.limit < 0:
        raise ValueError(f"--limit {args.limit} must be at least 0, which takes all prompts")
    if args.out and args.out.suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"--out {args.out}: name a .txt or .jsonl file")
    part = HubSet(args.subset, args.split, args.revision)
    prompts = read_prompts(args.source, column=args.column, limit=args.limit, part=part)
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
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, text)
    print(f"{len(prompts):,} prompts: {args.out}")
