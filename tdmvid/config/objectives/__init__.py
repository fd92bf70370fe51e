"""Settings of the distillation methods, one file per method. The mathematics is in distill/."""

from .base import ObjectiveSettings, objective_settings, register_settings
from .dmd2 import DMD2Settings
from .fisher import FisherSettings
from .gan import GANSettings
from .tdm import TDMSettings

__all__ = [
    "DMD2Settings",
    "FisherSettings",
    "GANSettings",
    "ObjectiveSettings",
    "TDMSettings",
    "objective_settings",
    "register_settings",
]
