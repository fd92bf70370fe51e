"""DMD2 (arXiv 2405.14867), the baseline, which matches distributions of clean predictions.

The student adds fresh noise to its prediction between steps ("backward simulation"). The
predictions of a step then have one distribution, whatever came before, and tau covers all times for
every step. The fake gets several updates per update of the student (a two-time-scale update rule).
"""

from __future__ import annotations

from ..config import DMD2Settings
from .objective import register
from .tdm import TDM


@register
class DMD2(DMD2Settings, TDM):
    """TDM with the defaults of DMD2."""
