"""FID (arXiv 1706.08500) and improved precision and recall (arXiv 1904.06991) between two sets of
images.

All use Inception features. The paper on precision and recall uses VGG features instead.
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
TORCH_FIDELITY = Needed(
    "torch_fidelity", "pip install '.[image-metrics]' in the clone", package=True
)
SMALLEST_SET = 4
"""Minimum number of images: every image needs three neighbours, and the covariance of FID more than
one image.
"""


def set_metrics(
    ours: Sequence[Path],
    theirs: Sequence[Path],
    metrics: Sequence[str],
    weights: Path,
    *,
    side: int,
    cuda: bool = False,
) -> dict[str, float]:
    """Compute "fid", "precision" and "recall" with torch-fidelity on Inception features.

    Args:
        ours: Image files to score.
        theirs: Image files to compare with.
        metrics: Which of "fid" and "precision_recall" to compute.
        weights: Weight file of Inception.
        side: Height and width in pixels to resize images to.
        cuda: Whether to compute on a GPU.

    Returns:
        Values by name.

    Raises:
        ValueError: A set is too small.
    """
    import torch_fidelity

    if min(len(ours), len(theirs)) < SMALLEST_SET:
        raise ValueError(
            f"{len(ours)} and {len(theirs)} images: compare sets of at least {SMALLEST_SET} images,"
            " and of thousands for results to publish"
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
    """Compute set metrics. The features of both sets are computed once.

    Args:
        ours: Images to score.
        theirs: Images to compare with.
        metrics: Names of the metrics to compute.

    Returns:
        Values by name.
    """
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
