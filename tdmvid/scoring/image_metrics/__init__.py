"""Image metrics, computed by the libraries that define them. To add one, add a file here and a line
below.

The libraries belong to the extra `image-metrics` and are imported when a metric is used. Weights
are stored in one cache folder.
"""

from .base import ImageMetric, ImageSet, SetMetric
from .clip import AESTHETIC, CLIP
from .diversity import DIVERSITY
from .fid import FID, PRECISION_RECALL
from .hps import HPS
from .text import TEXT

METRICS: dict[str, ImageMetric | SetMetric] = {
    metric.name: metric for metric in (HPS, CLIP, AESTHETIC, TEXT, DIVERSITY, FID, PRECISION_RECALL)
}
"""Metrics by their name in a config: those of single images, then those of whole sets."""

__all__ = ["METRICS", "ImageMetric", "ImageSet", "SetMetric"]
