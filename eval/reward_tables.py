"""Tables of `shapes_reward.py` in Markdown."""

from __future__ import annotations

from tdmvid.scoring.intervals import measure_of

SHARES = {
    "clear": "correct, inside and apart",
    "all": "correct",
    "inside": "inside",
    "apart": "apart",
    "bright": "bright",
    "trained on": "reward `shapes_clear`",
}
"""Measured shares of videos and their columns. All are the second judge's, except `bright` and the
reward, which are the functions that runs are trained with."""
ABOVE = tuple(
    f"above {name}{interval}"
    for name in ("plain", "teacher")
    for interval in ("", ", these captions")
)
"""Differences of shares in a comparison."""


def _interval(measure: dict, digits: int = 3, scale: float = 1.0) -> str:
    return measure_of(measure).text(f".{digits}f", scale=scale)


def describe_rows(rows: dict[str, dict], subset: str) -> str:
    """Format the table of samplers in Markdown. Shares are in percent.

    Args:
        rows: Measures by sampler.
        subset: Measure that was rewarded: the first column, with its interval.

    Returns:
        The table.
    """
    names = {subset: SHARES[subset]}
    names |= {f"{subset}, one": "one object", f"{subset}, two": "two objects"}
    names |= {name: text for name, text in SHARES.items() if name != subset}
    lines = [
        "| | " + " | ".join([*names.values(), "diversity", "flicker"]) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for sampler, row in rows.items():
        cells = [_interval(row[subset], 1, 100)]
        cells += [f"{100 * row[name]['value']:.1f}" if name in row else "" for name in names][1:]
        cells += [f"{row['diversity']['value']:.2f}", f"{row['flicker']['value']:.2f}"]
        lines.append(f"| {sampler} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe_pairs(pairs: list[dict]) -> str:
    """Format the table of pairs in Markdown.

    Args:
        pairs: Comparisons.

    Returns:
        The table.
    """
    lines = [
        "| | share | plain | expected | arriving | above plain | above plain, these captions"
        " | above the teacher | above the teacher, these captions | diversity, all"
        " | diversity, rewarded | Fréchet distance, rewarded: with, plain | difference | videos |",
        "|---" * 14 + "|",
    ]
    for pair in pairs:
        distance = pair["frechet in subset"]
        cells = [
            pair["pair"],
            *(f"{pair[name]:.3f}" for name in ("share", "plain share")),
            f"{pair['expected share']:.3f}" if "arriving" in pair else "",
            f"{pair['arriving']:.2f}" if "arriving" in pair else "",
            *(_interval(pair[name]) if name in pair else "" for name in ABOVE),
            *(_interval(pair[name], 2) for name in ("diversity", "diversity in subset")),
            f"{distance['ours']:.2f}, {distance['theirs']:.2f}",
            _interval(distance["difference"], 2),
            str(distance["count"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
