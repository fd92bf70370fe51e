"""Settings are read without importing torch, so errors are reported immediately."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "peft", "diffusers", "transformers")
LOAD = "load_config('shapes_4nfe', ['objective.kind=gan', 'real.path=videos'])"
CHECK = f"assert not set(sys.modules) & set({HEAVY}), sorted(set(sys.modules) & set({HEAVY}))"


def without_torch(program: str) -> None:
    """Run a Python program that must not import torch or other large packages."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_config_is_loaded_without_torch():
    without_torch(f"import sys; from tdmvid.config import load_config; {LOAD}; {CHECK}")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--config", "shapes_4nfe", "--set", "student.lrr=1"],
        ["--config", "shapes_4nfe", "--set", "objective.fake_updates=0"],
        ["--config", "nothing.json"],
    ],
    ids=" ".join,
)
def test_launch_answers_what_is_wrong_with_a_config_without_torch(words):
    without_torch(
        "import contextlib, runpy, sys\n"
        f"sys.argv = ['launch/train.py', *{words}]\n"
        "with contextlib.suppress(SystemExit):\n"
        "    runpy.run_path('launch/train.py', run_name='__main__')\n"
        f"{CHECK}"
    )
