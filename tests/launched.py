"""Runs with several ranks, started as users start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIE_IN_THE_SECOND_SAVE = """
import os, runpy, signal, sys
sys.argv = sys.argv[1:]
os.environ["DS_ACCELERATOR"] = "cpu"
from tdmvid.train import checkpoint
write_files = checkpoint.write_files
def write_or_die(files):
    if os.environ["RANK"] == "1" and "step_000004" in str(min(files)):
        os.kill(os.getpid(), signal.SIGKILL)
    write_files(files)
checkpoint.write_files = write_or_die
runpy.run_path("launch/train.py", run_name="__main__")
"""
"""Program for `ranks` in which rank 1 is killed while it saves its second checkpoint."""


def ranks(tiny_json, out, *changes, script=None, folder=None, count=2):
    """Run `torchrun launch/train.py`, or a script around it, and return its exit status and output.
    Takes less than three minutes.
    """
    program = "launch/train.py"
    if script:
        program = str(folder / "program.py")
        Path(program).write_text(script)
    options = [
        part for change in ("parallel.timeout_minutes=1", *changes) for part in ("--set", change)
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(count),
        program,
        *(["x"] if script else []),
        "--config",
        str(tiny_json),
        "--out",
        str(out),
        "--resume",
        "auto",
        *options,
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        # for a script in another folder
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)])),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr
