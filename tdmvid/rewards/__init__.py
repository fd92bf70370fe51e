"""Reward functions that score finished samples: built-in ones and those of users."""

from .functions import BUILT_IN, LOADED, RewardFailed, Scorer, find_function
from .means import GlobalMeans

__all__ = ["BUILT_IN", "LOADED", "GlobalMeans", "RewardFailed", "Scorer", "find_function"]
