"""DMD2 (arXiv 2405.14867), the baseline: distributions of clean predictions are matched, at any
noise level.

The student re-noises its prediction between steps ("backward simulation"), so each step's
prediction has one law whatever came before, and tau ranges over all times for every step.
The fake gets several updates for each of the student's, which stands in for a second time scale.
"""

from __future__ import annotations

from ..config import DMD2Settings
from .objective import register
from .tdm import TDM


@register
class DMD2(DMD2Settings, TDM):
    """TDM's mathematics with DMD2's defaults."""
