"""A reward from people's votes: a linear head on frozen features, fitted to pairwise choices.

A study (`tdmvid study`) shows pairs of samples of one prompt. The head is the Bradley-Terry model:
the log odds that people prefer a over b are the difference of the rewards of a and b.

Shapes: N pairs, D feature channels, B samples [B, 3, F, H, W] in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy import optimize, special
from torch import Tensor

from ..data.files import atomic_path, write_text
from ..data.items import file_digest
from ..data.media_folders import IMAGES
from ..data.video import read_image, read_video
from ..scoring.intervals import Measure, binomial
from ..scoring.study import Tally
from . import measures, shapes
from .clip import DEFAULT, Clip

Features = Callable[[Tensor], Tensor]
"""Maps samples to features [B, D]."""
FOLDS = 5
RIDGE = 1.0
"""Weight of the squared norm of the head, as of one vote against each feature."""


@dataclass(frozen=True)
class Pair:
    """Votes on one pair of a study."""

    prompt: str
    a: Path
    b: Path
    for_a: float
    """Votes for a; a vote for neither counts as half a vote for each."""
    for_b: float


@dataclass(frozen=True)
class Head:
    """A fitted head."""

    features: str
    """Name of the features."""
    model: str
    """Model of the features, where they have one."""
    weight: Tensor
    """Weight of each feature, [D]."""
    agreement: Measure
    """Share of the votes on prompts that were left out of the fit which the head agrees with."""


def votes_on_pairs(key: dict, votes: Tally, a: Path, b: Path) -> list[Pair]:
    """Return the votes of a study by pair of files.

    Args:
        key: Key of the study.
        votes: Its votes.
        a: Folder of the samples A.
        b: Folder of the samples B.

    Returns:
        The pairs that have votes.

    Raises:
        ValueError: A sample is missing, or is not the one that the study showed.
    """
    pairs = []
    for index, (for_a, for_b, neither) in sorted(votes.per_pair.items()):
        if not for_a + for_b + neither:
            continue
        asked = key["pairs"][index]
        sides = a / asked["file"], b / asked.get("file_b", asked["file"])
        for path, shown in zip(sides, asked.get("sha256", (None, None)), strict=True):
            if not path.is_file():
                raise ValueError(f"{path} does not exist: give the folders that the study showed")
            if shown and shown != file_digest(path):  # keys of earlier versions have none
                raise ValueError(
                    f"{path} is not the sample that the study showed: give the folder of"
                    f" {key['A']} as --a and that of {key['B']} as --b"
                )
        pairs.append(Pair(asked["prompt"], *sides, for_a + neither / 2, for_b + neither / 2))
    return pairs


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Write votes as JSON lines.

    Args:
        path: File to write.
        pairs: The votes.
    """
    rows = [
        {"prompt": p.prompt, "a": str(p.a), "b": str(p.b), "for_a": p.for_a, "for_b": p.for_b}
        for p in pairs
    ]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def make_features(name: str, model: str = "") -> Features:
    """Return a function that computes features.

    Args:
        name: `measures` (motion, saturation and sharpness), `shapes` (the embedded judge) or
            `clip`.
        model: Folder or hub name of the CLIP model.

    Returns:
        The function.

    Raises:
        ValueError: There are no such features, or files of the model are missing.
    """
    if name == "measures":
        each = (measures.motion, measures.saturation, measures.sharpness)
        return lambda samples: torch.stack([measure(samples, []).cpu() for measure in each], 1)
    if name == "shapes":
        return shapes.judged
    if name == "clip":
        clip = Clip(model or DEFAULT, function="votes")
        return lambda samples: clip.images(samples).mean(1).cpu()
    raise ValueError(f"features={name!r} are unknown: use measures, shapes or clip")


def fit_head(pairs: Sequence[Pair], features: str, model: str = "") -> Head:
    """Fit a head to votes.

    Args:
        pairs: The votes.
        features: Name of the features; see `make_features`.
        model: Model of the features.

    Returns:
        The head, and how far it agrees with votes on prompts that it was not fitted to.

    Raises:
        ValueError: There are fewer than ten pairs, or the votes prefer nothing.
    """
    if len(pairs) < 2 * FOLDS:
        raise ValueError(f"{len(pairs)} pairs have votes: a head needs at least {2 * FOLDS}")
    encode = make_features(features, model)
    sides = [
        torch.cat([encode(_read(getattr(pair, side))) for pair in pairs]).double()
        for side in ("a", "b")
    ]
    spread = torch.cat(sides).std(0).clamp(min=1e-6)
    difference = ((sides[0] - sides[1]) / spread).numpy()
    votes = np.array([[pair.for_a, pair.for_b] for pair in pairs])
    if (votes[:, 0] == votes[:, 1]).all():
        raise ValueError("no vote prefers either of a pair: there is nothing to fit")
    prompts = sorted({pair.prompt for pair in pairs})
    fold = np.array([prompts.index(pair.prompt) % FOLDS for pair in pairs])
    right = total = 0.0
    for left_out in range(FOLDS):
        mine = fold == left_out
        if mine.all() or not mine.any():
            continue
        sure = difference[mine] @ _fit(difference[~mine], votes[~mine])
        margin = votes[mine, 0] - votes[mine, 1]
        decided = margin != 0
        right += float((np.sign(sure) == np.sign(margin))[decided].sum())
        total += float(decided.sum())
    agreement = binomial(int(right), int(total)) if total else Measure(0.5, 0.0, 1.0)
    weight = torch.from_numpy(_fit(difference, votes)) / spread
    return Head(features, model, weight.float(), agreement)


def _fit(difference: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Return the weights [D] that maximise the likelihood of votes [N, 2], with a ridge."""

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        odds = difference @ weight
        value = votes[:, 0] @ np.logaddexp(0, -odds) + votes[:, 1] @ np.logaddexp(0, odds)
        slope = votes[:, 1] * special.expit(odds) - votes[:, 0] * special.expit(-odds)
        return (
            float(value + RIDGE * weight @ weight / 2),
            difference.T @ slope + RIDGE * weight,
        )

    start = np.zeros(difference.shape[1])
    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def save_head(path: Path, head: Head) -> None:
    """Write a head as safetensors.

    Args:
        path: File to write.
        head: The head.
    """
    place = Path(head.model)  # relative to the folder of this call
    model = str(place.resolve()) if head.model and place.is_dir() else head.model
    about = {"features": head.features, "model": model}
    with atomic_path(path) as part:
        save_file({"weight": head.weight}, part, metadata=about)


def load_votes(model: str) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Make the reward of a head that `tdmvid study fit` wrote.

    Args:
        model: The file.

    Returns:
        The reward function. A difference of 1 means odds of e that people prefer a sample.

    Raises:
        ValueError: The file is no head, or files of its features are missing.
    """
    remedy = "give the file that `tdmvid study fit` wrote"
    if not Path(model).is_file():
        raise ValueError(f"rewards.model={model!r} for function='votes' does not exist: {remedy}")
    weight, about = _read_head(Path(model), remedy)
    try:
        encode = make_features(about["features"], about["model"])
    except ValueError as error:
        raise ValueError(f"the features of {model}: {error}") from error

    def score(samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return encode(samples).float() @ weight

    return score


def _read_head(path: Path, remedy: str) -> tuple[Tensor, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("weight"), {
                name: (file.metadata() or {})[name] for name in ("features", "model")
            }
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(
            f"rewards.model={str(path)!r} for function='votes' is no head of votes ({error}):"
            f" {remedy}"
        ) from error


def _read(path: Path) -> Tensor:
    """Read a sample [1, 3, F, H, W] in [-1, 1]."""
    if path.suffix.lower() in IMAGES:
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        return (image.float() / 127.5 - 1)[None, :, None]
    return read_video(path)[None]
