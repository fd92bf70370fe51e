"""The embedded teacher: a whole CogVideoX in miniature, with its prompts, its world and its judge.

`TEACHER` is a pipeline folder that stock diffusers loads. How it was trained is told in
examples/shapes of the repository.
"""

from pathlib import Path

TEACHER = Path(__file__).with_name("teacher")
PROMPTS = Path(__file__).with_name("prompts.txt")
