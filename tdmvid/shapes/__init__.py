"""The embedded teacher: a complete miniature CogVideoX with its prompts, its world and its judge.

`TEACHER` is a pipeline folder that stock diffusers loads. The scripts that trained it are in
examples/shapes of the repository.
"""

from pathlib import Path

TEACHER = Path(__file__).with_name("teacher")
PROMPTS = Path(__file__).with_name("prompts.txt")
