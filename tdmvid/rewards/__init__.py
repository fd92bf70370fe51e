"""Reward functions that score finished samples: built-in ones and those of users."""

from .functions import BUILT_IN, RewardFailed, Scorer, find_function

__all__ = ["BUILT_IN", "RewardFailed", "Scorer", "find_function"]
