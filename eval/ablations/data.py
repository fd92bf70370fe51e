"""The data of a suite's page: every result, in one JSON file beside the page.

A clone has no stored results. It takes them from this file, so that rows and seeds can be added to
a page on any machine.
"""

from __future__ import annotations

from pathlib import Path

from tdmvid.config.json_files import read_object
from tdmvid.data.files import write_json


def write_data(path: Path, suite, kept: Path) -> None:
    """Write all results of a suite into one file.

    Args:
        path: JSON file to write.
        suite: The suite.
        kept: Folder of the results, one file per row and seed.
    """
    rows = [
        {
            "name": row.name,
            "row": repr(row),
            "seeds": {seed: read_object(file)["figures"] for seed, file in by_seed(kept, number)},
        }
        for number, row in enumerate(suite.rows())
    ]
    measured = [row for row in rows if row["seeds"]]
    write_json(path, {"settings": suite.settings(), "rows": measured})


def by_seed(kept: Path, number: int) -> list[tuple[str, Path]]:
    """List the stored results of a row.

    Args:
        kept: Folder of the results.
        number: Index of the row in the suite.

    Returns:
        (seed, file) of each result, ordered by seed.
    """
    found = [(path.stem.split("_")[1], path) for path in kept.glob(f"{number:02d}_*.json")]
    return sorted(found, key=lambda pair: int(pair[0]))


def take_data(path: Path, suite, kept: Path) -> list[str]:
    """Store the results of a page's data that are missing in a folder.

    Args:
        path: JSON file as `write_data` writes it. Nothing happens if it does not exist.
        suite: The suite.
        kept: Folder of the results.

    Returns:
        What could not be taken and why, one line each.

    Raises:
        ValueError: The file is not the data of a page.
    """
    if not path.is_file():
        return []
    data = read_object(path)
    if not {"settings", "rows"} <= data.keys():
        raise ValueError(f"{path} has no settings and rows: it is not the data of a page")
    if data["settings"] != (ours := suite.settings()):
        return [f"{path} is not used: it was measured with {data['settings']}, not {ours}"]
    numbers = {repr(row): number for number, row in enumerate(suite.rows())}
    left = []
    for row in data["rows"]:
        if row["row"] not in numbers:
            left.append(f"{path}: {row['name']} is not used: the row has changed since")
            continue
        for seed, figures in row["seeds"].items():
            stored = kept / f"{numbers[row['row']]:02d}_{seed}.json"
            if not stored.exists():
                facts = {"row": row["row"], "seed": int(seed), "settings": ours}
                write_json(stored, facts | {"figures": figures})
    return left
