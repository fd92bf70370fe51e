"""What scores a finished sample: functions of users and built-in ones."""

from .functions import BUILT_IN, RewardFailed, Scorer, find_function

__all__ = ["BUILT_IN", "RewardFailed", "Scorer", "find_function"]
