"""A blind comparison by people: pairs of the same prompt from two sample folders, and what their
votes say.

Which sampler is on which side is drawn per pair and person in the browser; the page knows the two
only as A and B, and the key that names them stays with whoever made it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2

from ..data.files import short, write_json, write_text
from ..data.items import file_digest
from ..data.media import PICTURES, embed, file_inside
from ..sampling.manifest import check_finished
from .intervals import Measure, binomial

CHOICES = ("A", "B", "same")
SENDER = "the person who sent you this page"
KEY = "give the .key.json file that `tdmvid study make` wrote beside the page"
LARGEST = 500 * 2**20
"""Bytes of a page's files in base64: no string of a browser's JavaScript is longer than 512 Mi
letters, and a page with a longer script stays empty.
"""


@dataclass(frozen=True)
class Question:
    """A pair to judge: files of A and B, the same prompt and seed."""

    prompt: str
    file: str
    """Name of A's file in its folder."""
    file_b: str
    """Name of B's file in its folder."""
    sides: tuple[Path, Path]
    image: Path | None = None
    """Given first frame of both; None for a model without images."""


def pair_samples(a: Path, b: Path) -> list[Question]:
    """Pair the manifests of two sample folders (`tdmvid sample`), in A's order.

    A pair has the same prompt, seed and given image. The image is shown if it is still there. Of
    copies under other names, the first that exists is taken.

    Raises:
        ValueError: without any pair, for a folder that is not finished, or where a manifest names a
            file outside of its folder.
    """
    if a.resolve() == b.resolve():
        raise ValueError(f"{a} is given twice: a study compares two samplers")
    ours, theirs = _manifest(a), _manifest(b)
    by_given = _first_files(b, theirs)
    common = {
        file: by_given[given] for given, file in _first_files(a, ours).items() if given in by_given
    }
    if not common:
        raise ValueError(
            f"{a} and {b} have no prompt, seed and given image in common: sample both from the same"
            " prompts, seeds and images"
        )
    return [
        Question(
            ours[file]["prompt"],
            file,
            other,
            (file_inside(a, file), file_inside(b, other)),
            _image(ours[file]) or _image(theirs[other]),
        )
        for file, other in common.items()
    ]


def _first_files(folder: Path, entries: dict[str, dict]) -> dict[tuple, str]:
    """Return a file of every prompt, seed and image: the first that exists, in the manifest's
    order.
    """
    files: dict[tuple, str] = {}
    for file, entry in entries.items():
        given = _given(entry)
        if given not in files or not (folder / files[given]).exists():
            files[given] = file
    return files


def _given(entry: dict) -> tuple:
    """Return the prompt, the seed, and the digest of the given image, which is "" without one."""
    return entry["prompt"], entry.get("seed"), str(entry.get("image_sha256", ""))


def _image(entry: dict) -> Path | None:
    """Return the given image of a sample, if its file still has the content of the sampling and is
    of a kind that browsers show.
    """
    name = entry.get("image")
    if not isinstance(name, str) or not name or not Path(name).is_file():
        return None
    if Path(name).suffix.lower() not in PICTURES:
        return None  # a browser does not show it
    return Path(name) if file_digest(Path(name)) == entry.get("image_sha256") else None


def _manifest(folder: Path) -> dict[str, dict]:
    """Return the entry of every file that a folder's manifest names."""
    check_finished(folder)
    path = folder / "manifest.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} has no manifest.jsonl: give folders that `tdmvid sample` wrote")
    entries: dict[str, dict] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}): sample again") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file, prompt = entry["file"], entry["prompt"]
        except (ValueError, TypeError, KeyError, RecursionError):
            file = prompt = None
        if not isinstance(file, str) or not isinstance(prompt, str):
            raise ValueError(
                f"{path}, line {number} has no file and prompt: `tdmvid sample` writes both"
            )
        entries[file] = entry
    return entries


def write_study(
    out: Path,
    questions: list[Question],
    *,
    title: str,
    question: str,
    names: tuple[str, str],
    send_to: str = SENDER,
) -> str:
    """Write `out`, an HTML file that works without a server, and its key beside it, `out`.key.json.

    The page holds the videos themselves, so that it can be mailed; nothing in it says which sampler
    is which.

    Args:
        out: the page.
        questions: the pairs.
        title: heading of the page.
        question: what people are asked about each pair.
        names: what A and B are; only the key holds them.
        send_to: to whom people send their votes, e.g. a mail address.

    Returns:
        The study's name.

    Raises:
        ValueError: for more videos than a browser opens, or if `out` or its key is another study's.
    """
    _check_size(questions)
    items = [
        {
            "id": index,
            "prompt": q.prompt,
            "sides": [asdict(embed(path)) for path in q.sides],
            **({"image": asdict(embed(q.image))} if q.image else {}),
        }
        for index, q in enumerate(questions)
    ]
    study = hashlib.sha256(json.dumps([title, items]).encode()).hexdigest()[:12]
    _check_unused(out, study)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    write_text(
        out,
        environment.get_template("study.html.j2").render(
            study=study, title=title, question=question, items=items, send_to=send_to
        ),
    )
    key = {
        "study": study,
        "A": names[0],
        "B": names[1],
        "pairs": [
            {
                "prompt": q.prompt,
                "file": q.file,
                "file_b": q.file_b,
                "sha256": [file_digest(path) for path in q.sides],
            }
            for q in questions
        ],
    }
    write_json(out.with_suffix(".key.json"), key)
    return study


def _check_unused(out: Path, study: str) -> None:
    """Refuse a page or key of another study, and any other file, which would be lost."""
    key = out.with_suffix(".key.json")
    found = {
        key: rb'"study":\s*"(\w+)"',
        out: rb'const study = "(\w+)"',  # a title cannot hold it: its quotes are escaped
    }
    for path, pattern in found.items():
        if not path.exists():
            continue
        there = re.search(pattern, path.read_bytes())
        if there is None:
            raise ValueError(f"{path} exists and belongs to no study: use another --out")
        if (other := there[1].decode()) != study:
            raise ValueError(
                f"{path} belongs to study {other}, whose votes need it: use another --out"
            )


def _check_size(questions: list[Question]) -> None:
    total = 0
    for count, question in enumerate(questions):
        files = [*question.sides, *([question.image] if question.image else [])]
        for path in files:
            if not path.is_file():
                raise ValueError(f"{path} does not exist: sample it again")
            total += 4 * -(-path.stat().st_size // 3)
        if total > LARGEST:
            limit = f"{LARGEST / 2**20:.0f} MiB, with which browsers still open it"
            remedy = (
                f"use --pairs {count}"
                if count
                else f"sample shorter or smaller videos than {question.file}"
            )
            raise ValueError(
                f"{len(questions)} pairs are more than one page can hold ({limit}): {remedy}"
            )


@dataclass(frozen=True)
class Tally:
    """What the votes say; `preferred` is the share of A among votes that are not "same"."""

    a: int
    b: int
    same: int
    people: int
    preferred: Measure | None
    per_pair: dict[int, tuple[int, ...]]
    """Votes for A, B and neither, by pair."""

    @property
    def decided(self) -> bool:
        """Return whether the interval leaves out one half."""
        return self.preferred is not None and not self.preferred.holds(0.5)


def tally(key: dict, ballots: Iterable[tuple[str, dict]]) -> Tally:
    """Count ballots, each (where it is from, its JSON); ValueError for one of another study, a
    person's second one, or a vote for nothing there is.

    Votes of one person on several pairs are counted as independent; with few people the interval is
    too narrow.
    """
    per_pair = {index: [0, 0, 0] for index in range(len(key["pairs"]))}
    known = set(map(str, per_pair))
    people: dict[str, str] = {}
    for where, ballot in ballots:
        if ballot.get("study") != key["study"]:
            raise ValueError(
                f"{where} is of study {short(ballot.get('study'))}, the key of {key['study']!r}:"
                " sort the files by study"
            )
        person, choices = ballot.get("person"), ballot.get("votes")
        if not isinstance(choices, dict):
            raise ValueError(
                f"{where}: votes={short(choices)} are no choices by pair: use the file that the"
                " page saved"
            )
        if not isinstance(person, str) or not person:
            raise ValueError(f"{where} names no person: use the file that the page saved")
        if person in people:
            raise ValueError(
                f"{where} is by the same person as {people[person]}: keep the newer of the two"
            )
        people[person] = where
        for pair, choice in choices.items():
            if choice not in CHOICES or pair not in known:
                raise ValueError(
                    f"{where}: vote {short(choice)} on pair {short(pair)} is none of"
                    f" {', '.join(CHOICES)} on pairs 0 to {len(per_pair) - 1}"
                )
            per_pair[int(pair)][CHOICES.index(choice)] += 1
    a, b, same = (sum(votes[i] for votes in per_pair.values()) for i in range(3))
    preferred = binomial(a, a + b) if a + b else None
    return Tally(
        a, b, same, len(people), preferred, {pair: tuple(votes) for pair, votes in per_pair.items()}
    )


def describe(key: dict, votes: Tally) -> str:
    """Return the outcome in words."""
    lines = [
        f"{votes.people} people: {key['A']} {votes.a}, {key['B']} {votes.b}, no difference"
        f" {votes.same}"
    ]
    if votes.preferred is None:
        return f"{lines[0]}\nnobody preferred either"
    share = votes.preferred
    lines.append(
        f"{key['A']} preferred in {share.text('.1f', scale=100, unit=' %')} of the votes that chose"
        " (95 %, Wilson)"
    )
    lines.append("one is preferred" if votes.decided else "undecided: the interval holds one half")
    return "\n".join(lines)


def read_ballots(paths: Sequence[Path]) -> list[tuple[str, dict]]:
    """Return the votes files of participants for `tally`; ValueError names a file."""
    remedy = 'give the files that "Save votes" on the page writes'
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f'no votes file {path} is there yet: "Save votes" on the page writes it, and people'
                " have to send it to you"
            )
    return [(str(path), read_votes(path, "study", "votes", remedy=remedy)) for path in paths]


def read_votes(path: Path, *needed: str, remedy: str = KEY) -> dict:
    """Return the JSON object of a file that has these entries; ValueError names the file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist: {remedy}")
    try:
        found = json.loads(path.read_bytes())  # finds the encoding
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(name in found for name in needed):
        raise ValueError(f"{path} is no JSON with {', '.join(needed)}: {remedy}")
    return found
