"""What a run is: settings as frozen dataclasses, read from one JSON file."""

from .run import *  # noqa: F403
