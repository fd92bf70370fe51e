"""Measures of images, by the libraries that define them; a new one is a file here and a line below.

The libraries are the extra `image-metrics`; they are imported when a measure is asked for. Weights
lie under one cache folder.
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
"""Name in a config -> metric: those of single images first, then those of whole sets."""

__all__ = ["METRICS", "ImageMetric", "ImageSet", "SetMetric"]
