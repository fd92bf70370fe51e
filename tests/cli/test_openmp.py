"""OpenMP threads sleep while they wait, so other programs can use the cores."""

import os
import subprocess
import sys

import pytest

from tdmvid.cli.openmp import sleep_between_kernels

UNTIL_TORCH = """
import os, runpy, sys

class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Torch())
module, *sys.argv = sys.argv[1:]
sys.argv.insert(0, module)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def policy_when_torch_is_imported(*words: str, **variables: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_TORCH, *words],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "words",
    [
        ("tdmvid", "train", "--config", "shapes_4nfe"),
        ("launch.train", "--config", "configs/shapes_4nfe.json"),
        ("benchmarks.toy",),
        ("examples.shapes.make_teacher", "--help"),
    ],
)
def test_a_program_s_idle_threads_sleep_unless_the_user_lets_them_spin(words):
    """OpenMP reads its policy when torch is imported, so it must be set before."""
    assert policy_when_torch_is_imported(*words) == "PASSIVE"
    assert policy_when_torch_is_imported(*words, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_the_policy_is_only_set_where_there_is_none(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    sleep_between_kernels()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    sleep_between_kernels()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
