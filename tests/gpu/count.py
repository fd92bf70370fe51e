"""Count one training iteration of a run on a simulated GPU.

    python tests/gpu/count.py --config configs/cogvideox2b_4nfe.json
    python tests/gpu/count.py --config configs/cogvideox2b_4nfe.json --blocks 2 --lines 20 \
        --set parallel.gradient_checkpointing=false

Requires PyTorch for CPUs and a C++ compiler. Nothing is computed and no weights are read.
"""

# ruff: noqa: E402
from __future__ import annotations

import pretended

pretended.load()

import argparse
import math
import os
import sys
import tempfile
from collections import Counter as Tally
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import counting
import stage

from tdmvid.config import load_config
from tdmvid.plan.units import GIB

GB = 1e9


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="name or file of a run's config")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a setting; may be repeated",
    )
    parser.add_argument("--blocks", type=int, default=0, help="number of blocks; 0 for all")
    parser.add_argument("--k", type=int, default=1, help="step at which the rollout stops")
    parser.add_argument("--lines", type=int, default=0, help="print so many lines of each table")
    return parser.parse_args()


def print_tally(name: str, tally: Tally[str], *, unit: float = 1, most: int = 12) -> None:
    """Print the largest entries of a table."""
    if tally and most:
        print(f"{name}: {sum(tally.values()) / unit:,.0f}")
        for what, count in tally.most_common(most):
            print(f"  {count / unit:10,.1f}  {what}" if unit > 1 else f"  {count:10,}  {what}")


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as work:
        config = stage.shorten(load_config(args.config, args.set), args.blocks, Path(work))
        plan = stage.plan(config)
        with (
            pretended.pretend(),
            counting.device(host_value=args.k, lines=args.lines > 0) as counter,
        ):
            counts = stage.measure(plan.config, counter)
    planned = math.fsum(plan.memory().values())
    print(f"{config.name}: {plan.weights.base / 1e6:,.0f} M parameters, k = {args.k}")
    print(f"launches: {counts.launches:,}")
    print(
        f"GB read and written: {counts.bytes / GB:,.1f}, elementwise"
        f" {counts.elementwise_bytes / GB:,.1f}"
    )
    print(
        f"peak GiB: {counts.peak / GIB:.2f}, planned {planned / GIB:.2f}"
        f" ({counts.peak / planned - 1:+.1%})"
    )
    if counts.sent:
        sent, tokens = sum(counts.sent.values()), plan.traffic()["tokens"]
        print(f"GB sent for tokens: {sent / GB:.3f}, planned {tokens / GB:.3f}")
    for name in ("kernels", "waits", "copies", "unequal", "slow", "doubles"):
        print_tally(name, getattr(counts, name))
    print_tally("elementwise GB, operations", counts.by_operation, unit=GB, most=args.lines)
    print_tally("elementwise GB, lines", counts.by_line, unit=GB, most=args.lines)


if __name__ == "__main__":
    main()
