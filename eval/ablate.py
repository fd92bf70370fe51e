"""Run the ablations of the paper (arXiv 2503.06674) on small problems, and write a table and a
plot.

    python eval/ablate.py --suite toy --seeds 0 1 2 3 4 5     # a mixture of Gaussians
    python eval/ablate.py --suite rates --seeds 100           # learning rates for it
    python eval/ablate.py --suite dmd2 --seeds 0 1 2 3 4 5    # TDM and DMD2, several lengths
    python eval/ablate.py --suite dmd2_rates --seeds 100 101 102  # learning rates of DMD2
    python eval/ablate.py --suite importance --seeds 0 1 2 3  # when importance weights matter
    python eval/ablate.py --suite targets --seeds 0 1 2 3     # what the fake regresses on
    python eval/ablate.py --suite rewards --seeds 0 1 2 3     # how much of a reward arrives
    python eval/ablate.py --suite shapes --iterations 300     # a miniature CogVideoX; takes hours
    python eval/ablate.py --suite demo --seeds 0 1 2 3 4      # the demo beside other methods; hours
    python eval/ablate.py --suite shapes --iterations 200 --rows "TDM" "match clean"

Every result is stored in runs/ablations/<suite>/ immediately, so a second start continues where the
first stopped, and seeds can run in parallel. The page, its plot and its data (JSON) are made from
the stored results, next to that folder. --pages docs updates those in docs/, and takes the results
of the data there that are not stored yet.
"""

from __future__ import annotations

import argparse
import shlex
from itertools import takewhile
from pathlib import Path

import torch

import ablations
from tdmvid.cli.leave import Parser, run_program
from tdmvid.config import check_number
from tdmvid.config.json_files import read_object
from tdmvid.config.ranges import MILLION, Range
from tdmvid.data.files import write_json

ROOT = Path(__file__).resolve().parent.parent


def run(suite, seeds: list[int], kept: Path, names: list[str] | None = None) -> None:
    """Measure every row that has no result yet, one seed of the whole table at a time.

    Args:
        suite: The suite.
        seeds: Seeds to run.
        kept: Folder of the results, one file per row and seed.
        names: Rows to measure; default: all.
    """
    known = [row.name for row in suite.rows()]
    if unknown := set(names or ()) - set(known):
        raise SystemExit(
            f"--rows {sorted(unknown)[0]!r} is not a row of this suite: choose from"
            f" {', '.join(map(repr, known))}"
        )
    for index, seed in enumerate(seeds):
        for number, row in enumerate(suite.rows()):
            if (names and row.name not in names) or 0 < row.most_seeds <= index:
                continue
            path = kept / f"{number:02d}_{seed}.json"
            if path.is_file():
                read_result(path, row, suite)
                continue
            figures = suite.measure(row, seed)
            write_json(
                path,
                {"row": repr(row), "seed": seed, "settings": suite.settings(), "figures": figures},
            )
            print(
                f"{row.name}, seed {seed}: "
                + ", ".join(f"{k} {v:.3f}" for k, v in figures.items() if isinstance(v, float)),
                flush=True,
            )


def read_result(path: Path, row, suite) -> dict:
    """Read a stored result. Exits if it was measured with other settings.

    Args:
        path: File of the result.
        row: Row of the suite.
        suite: The suite.

    Returns:
        Values by column.
    """
    result = read_object(path)
    known = result.get("row"), result.get("settings")
    if known != (repr(row), suite.settings()):
        raise SystemExit(
            f"{path} was measured as {known[0]} with {known[1]}, but this run has {row} with"
            f" {suite.settings()}: choose another --out"
        )
    return result["figures"]


def results(suite, kept: Path) -> dict[str, list[dict]]:
    """Read the results of every row, for the seeds that all rows with results have in common.

    Rows that are measured with fewer seeds have the first of them.

    Args:
        suite: The suite.
        kept: Folder of the results.

    Returns:
        For each row, one dictionary of values per seed.
    """
    found = {
        row.name: {
            int(path.stem.split("_")[1]): read_result(path, row, suite)
            for path in kept.glob(f"{number:02d}_*.json")
        }
        for number, row in enumerate(suite.rows())
    }
    few = {row.name: row.most_seeds for row in suite.rows() if row.most_seeds}
    whole = [set(seeds) for name, seeds in found.items() if seeds and name not in few]
    whole = whole or [set(seeds) for seeds in found.values() if seeds]
    common = set.intersection(*whole) if whole else set()
    if not common:
        raise SystemExit(
            f"no page was written: the rows in {kept} have no seed in common, but rows are"
            " compared seed by seed; run them with the same --seeds"
        )
    kept = {}
    for name, seeds in found.items():
        chosen = takewhile(seeds.__contains__, sorted(common)[: few.get(name)])
        kept[name] = [seeds[seed] for seed in chosen]
    return kept


def command_of(suite, kept: Path) -> str:
    """Return the command that makes a page.

    Args:
        suite: The suite.
        kept: Folder of the results.

    Returns:
        The command, with the seeds and rows that have results.
    """
    settings, rows = suite.settings(), [row.name for row in suite.rows()]
    known = [path.stem.split("_") for path in kept.glob("*_*.json")]
    measured = sorted({int(number) for number, _ in known})
    words = ["python", "eval/ablate.py", "--suite", settings["suite"], "--seeds"]
    words += sorted({seed for _, seed in known}, key=int)
    if "iterations" in settings:
        words += ["--iterations", str(settings["iterations"])]
    if len(measured) < len(rows):
        words += ["--rows", *(rows[number] for number in measured)]
    return shlex.join(words)


def main() -> None:
    """Run a suite and write its page."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--suite",
        choices=list(ablations.SUITES),
        required=True,
        help="suite to run",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every row"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="NAME", help="only these rows of the table (default: all)"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=0,
        help="iterations of every row; 0 for the suite's default",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "ablations", help="folder for the results"
    )
    parser.add_argument(
        "--pages", type=Path, help="folder for the page and the plot (default: --out)"
    )
    args = parser.parse_args()
    allowed = Range(0, MILLION, "iterations; 0 uses the suite's default")
    check_number("--iterations", args.iterations, allowed)
    torch.set_num_threads(1)
    suite = ablations.suite(args.suite, args.iterations)
    kept = args.out / args.suite
    page = (args.pages or args.out) / suite.page
    data = page.with_suffix(".json")
    for line in ablations.take_data(data, suite, kept):
        print(line)
    run(suite, args.seeds, kept, args.rows)
    ablations.write_page(page, suite, results(suite, kept), command_of(suite, kept))
    ablations.write_data(data, suite, kept)
    print(f"page: {page}")


if __name__ == "__main__":
    run_program(main)
