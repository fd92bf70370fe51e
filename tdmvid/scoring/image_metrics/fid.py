"""FID (arXiv 1706.08500) and improved precision and recall (1904.06991) of one set against another.

Both are on Inception features, precision and recall too, where their paper has VGG's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..preflight import Needed
from .base import ImageSet, Pictures, SetMetric

WEIGHTS = Needed(
    "inception/weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)
TORCH_FIDELITY = Needed("torch_fidelity", "pip install 'tdmvid[image-metrics]'", package=True)
SMALLEST_SET = 4
"""Every point needs three neighbours besides itself; FID's covariance needs more than one image."""


def set_metrics(
    ours: Sequence[Path],
    theirs: Sequence[Path],
    metrics: Sequence[str],
    weights: Path,
    *,
    side: int,
    cuda: bool = False,
) -> dict[str, float]:
    """Return "fid", "precision" and "recall" of a set of images against another, by torch-fidelity
    on Inception features.
    """
    import torch_fidelity

    if min(len(ours), len(theirs)) < SMALLEST_SET:
        raise ValueError(
            f"{len(ours)} and {len(theirs)} images: compare sets of at least {SMALLEST_SET}, and of"
            " thousands for figures to publish"
        )
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(ours, side),
        input2=Pictures(theirs, side),
        fid="fid" in metrics,
        prc="precision_recall" in metrics,
        cuda=cuda,
        verbose=False,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        batch_size=32,
        save_cpu_ram=True,
    )
    names = {"frechet_inception_distance": "fid", "precision": "precision", "recall": "recall"}
    return {short: float(found[name]) for name, short in names.items() if name in found}


def compare_sets(ours: ImageSet, theirs: ImageSet, metrics: Sequence[str]) -> dict[str, float]:
    """Return the wanted figures; the features of both sets are computed once."""
    return set_metrics(
        ours.files,
        theirs.files,
        metrics,
        ours.cache / WEIGHTS.path,
        side=ours.side,
        cuda=ours.device == "cuda",
    )


FID = SetMetric("fid", (WEIGHTS, TORCH_FIDELITY), compare_sets, SMALLEST_SET)
PRECISION_RECALL = SetMetric(
    "precision_recall", (WEIGHTS, TORCH_FIDELITY), compare_sets, SMALLEST_SET
)
