"""What a training iteration does on a GPU, counted on a simulated CUDA device.

A CPU build of PyTorch gets a device that computes nothing (`device.cpp`), so autocast, attention
and autograd follow CUDA's rules and `counting.Counter` sees every kernel. It does not see: time;
compiled code (Inductor has no Triton here, and its code bypasses the counter); kernels of xformers,
cuDNN and torchao; what the allocator rounds up or loses between blocks; workspaces of libraries;
values, and therefore whether a loss is finite.

A run's samples are generated and decoded, and the stock pipeline runs with a student's scheduler,
as in the check of the export. The check itself does not run, because it writes and reads files and
compares values. The stock pipelines of Wan's image to video and of HunyuanVideo were left out: they
select values by their content, which tensors without data do not have.

DeepSpeed's engines of every ZeRO stage train on rank 0 of two (`sharded.py`). Streams and events do
nothing, so what overlaps with what is not seen. ZeRO-3's check that all ranks gather in the same
order is left out, because it compares values of other ranks. Offload and checkpoints were not
tried.
"""

import fcntl
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu.cases import QUICK, SLOW, WHOLE
from gpu.pretended import compiler

pytestmark = pytest.mark.skipif(
    not compiler() or torch.backends.cuda.is_built(),
    reason="the pretended device needs g++ and a CPU build of PyTorch",
)

PROGRAM = Path(__file__).with_name("cases.py")
ROOT = PROGRAM.parents[2]
FAULTS = (
    *("unequal", "masked", "slow", "waiting", "copying", "doubled", "mixed", "sending"),
    *("elementwise", "into_place", "activated", "normed"),
)
WAITS = 3
"""Synchronizations of an iteration: whether to step the fake and the student, and what to log."""
CHOICES = "backbones/experts.py:"
"""Start of the line that waits to choose one of two experts, once per network call."""
OFF = 0.05
"""Relative error that a planned peak may have."""


def counted(folder, *names):
    """Run the program that counts cases in a separate process, and return the results by name."""
    out = folder / f"{names[0]}.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(out), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """`results(name)`: counts of a case. All cases of its group are counted once, even if several
    processes run the suite.
    """
    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = together / "pretended_device"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def group(*names):
        with (folder / f"{names[0]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            out = folder / f"{names[0]}.json"
            return json.loads(out.read_text()) if out.exists() else counted(folder, *names)

    return lambda name: group(*(SLOW if name in SLOW else (*FAULTS, *QUICK)))[name]


def waits(result):
    found = {line: n for line, n in result["waits"].items() if not line.startswith(CHOICES)}
    return found if sum(found.values()) > WAITS else {}


def peak(result):
    if result["planned_peak"] is None:
        return {}
    share = result["peak"] / result["planned_peak"] - 1
    return {"peak beside plan": share} if abs(share) > OFF else {}


def sent(result):
    own, planned = sum(result["sent"].values()), result["planned_sent"]
    # with gradient checkpointing, the plan includes sending the network's output again
    return {"sent": own, "planned": planned} if abs(own - planned) > 6e-3 * planned else {}


CHECKS = {
    "waits": waits,
    "copies": lambda result: result["copies"],
    "unequal": lambda result: result["unequal"],
    "slow": lambda result: result["slow"],
    "doubles": lambda result: result["doubles"],
    "sent": sent,
    "peak": peak,
}
"""What an iteration must not do, and what it did."""
LIBRARY = {
    ("flux1", "doubles"): " at models/embeddings.py:",  # as flux2
    ("flux2", "doubles"): " at models/embeddings.py:",  # a table of positions in each call
    ("qwen_image", "copies"): " at transformers/transformer_qwenimage.py:",  # the text's length
}
"""Family and check -> where its network itself does what an iteration must not do."""


def faults(name, check, result):
    """Return what a check found, without what the library's network does by itself."""
    library = LIBRARY.get((name.partition("-")[0], check))
    found = CHECKS[check](result)
    if library is None:
        return found
    return {line: count for line, count in found.items() if library not in line}


def pairs(cases, *marks):
    return [
        pytest.param(name, check, id=f"{name}-{check}", marks=marks)
        for name in cases
        for check in CHECKS
    ]


@pytest.mark.parametrize("name, check", [*pairs(QUICK), *pairs(SLOW, pytest.mark.slow)])
def test_a_case_of_two_blocks(results, name, check):
    result = results(name)
    if result["error"]:
        pytest.fail(result["error"])
    assert faults(name, check, result) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model(tmp_path, name):
    result = counted(tmp_path, name)[name]
    assert not result["error"], result["error"]
    assert {check for check in CHECKS if faults(name, check, result)} == set(), result


@pytest.mark.parametrize(
    "stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))]
)
def test_deepspeed_sends_and_holds_what_is_planned(tmp_path, stage):
    """Each stage has its own process, because DeepSpeed keeps its process groups to the end."""
    result = counted(tmp_path, f"zero{stage}")[f"zero{stage}"]
    assert not result["error"], result["error"]
    own, planned = sum(result["sent"].values()), result["planned_sent"]
    if stage == 3:  # DeepSpeed keeps gathered weights that it needs again soon, here of both blocks
        assert 0.8 * planned < own < planned
    else:
        assert own == pytest.approx(planned, rel=1e-5) and planned > 0
    # it waits for norms and flags of each engine, and adds norms in float64
    library = {"waits", "copies", "doubles"}
    found = {name: CHECKS[name](result) for name in CHECKS.keys() - library - {"sent"}}
    assert not any(found.values()), found
    ours = [line for line in result["waits"] if line.startswith(("distill", "train", "backbones"))]
    assert sum(result["waits"][line] for line in ours) == 1  # for what is logged


def test_the_counter_sees_each_fault(results):
    assert sum(results("unequal")["unequal"].values()) == 1
    assert results("masked")["kernels"] == {"efficient": 1} and not results("masked")["slow"]
    assert sum(results("slow")["slow"].values()) == 1
    assert sum(results("waiting")["waits"].values()) == 2
    assert sum(results("copying")["copies"].values()) == 3
    assert sum(results("doubled")["doubles"].values()) == 1
    assert results("sending")["sent"] == {"alltoall_base_": 9, "allreduce_": 18}
    assert "cpu" in results("mixed")["error"] and "cuda" in results("mixed")["error"]


def test_the_counter_counts_bytes(results):
    """zeros, x * 2, exp, sum; then the gradients of exp and of x * 2, from one number."""
    result = results("elementwise")
    assert result["peak"] == 4_000_000 + 8  # y, exp and two gradients, and two single numbers
    assert round(result["elementwise_bytes"] / 1e6) == 1 + 2 + 2 + 1 + 2 + 2
    assert result["live"] == 0
    assert results("into_place")["elementwise_bytes"] == 3_000_000


def test_an_activation_has_one_kernel_each_way(results):
    """A device without a kernel for the backward pass would decompose it into seven."""
    names = {name.split()[0] for name in results("activated")["by_operation"]}
    assert names == {"ones", "silu", "sum", "ones_like", "silu_backward"}


def test_a_root_mean_square_norm_has_one_kernel_each_way(results):
    """The unit is the size of the weight, a third of the size of x. Forward: read x and the weight,
    write the output. Backward: read the gradient, x and the weight, write the gradient of x.
    """
    moved = results("normed")["by_operation"]
    kernels = {name.split()[0]: count for name, count in moved.items() if "rms_norm" in name}
    assert {name: round(count / 5e5) for name, count in kernels.items()} == {
        "_fused_rms_norm": 3 + 1 + 3,
        "_fused_rms_norm_backward": 3 + 3 + 1 + 3,
    }
    assert not {name for name in moved if name.split()[0] in ("pow", "rsqrt", "mean")}
