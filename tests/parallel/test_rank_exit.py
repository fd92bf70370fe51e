"""One rank works while others wait, and all ranks exit together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
SECONDS, SHARDS = 1.6, 4
LEAVE_AT_ONCE = """
import torch
import torch.distributed as dist
from tdmvid.parallel import collectives, launch
launch.start("deepspeed", 1)
# DeepSpeed keeps them too, so that their threads live on.
kept = dist.group.WORLD, dist.new_group([0, 1, 2, 3])
tensor = torch.ones(1000)
for _ in range(20):
    dist.all_reduce(tensor, group=kept[1])
launch.finish()
"""


class Slow:
    """Backbone with a slow text encoder."""

    takes_images = False

    def __init__(self):
        from torch import nn

        self.network = nn.Linear(1, 1).requires_grad_(False)

    def text_fingerprint(self):
        return "slow"

    def release_text(self):
        pass

    def find_cut_prompts(self, prompts):
        from tdmvid.backbones.text_limit import CutPrompts

        return CutPrompts(0)

    def encode_prompts(self, prompts):
        import torch

        from tdmvid.diffusion.denoiser import Cond

        time.sleep(SECONDS)
        return Cond({"prompt_embeds": torch.full((len(prompts), 1, 1), float(len(prompts[0])))})


def embed(prompts, cache, timeout):
    from tdmvid.config import RunConfig, from_dict
    from tdmvid.data import embeddings as shards
    from tdmvid.parallel import launch
    from tdmvid.train.prepare import prepare_embeddings

    shards.PROMPTS_PER_SHARD = 1
    world = launch.start("deepspeed", timeout / 60)
    start = time.monotonic()
    cache, read = prepare_embeddings(
        from_dict(RunConfig, {"prompts": {"path": str(prompts), "cache": str(cache)}}),
        Slow(),
        world,
    )
    return time.monotonic() - start, cache.get(read)["prompt_embeds"].flatten().tolist()


@pytest.mark.slow
def test_ranks_wait_for_prompts_for_longer_than_one_wait_may_take(tmp_path):
    """One rank embeds the prompts and signals every shard, so thousands of prompts do not exceed
    the timeout of the others.
    """
    (tmp_path / "prompts.txt").write_text("\n".join("a" * (n + 1) for n in range(SHARDS)))
    timeout = 6.0
    for seconds, found in run_ranks(
        2, embed, tmp_path / "prompts.txt", tmp_path / "cache", timeout
    ):
        assert seconds > SECONDS * (SHARDS + 1) > timeout and found == [1, 2, 3, 4]


def other_prompts(folder):
    from tdmvid.config import RunConfig, from_dict
    from tdmvid.parallel import launch
    from tdmvid.train.prepare import prepare_embeddings

    world = launch.start("deepspeed", 1)
    config = from_dict(
        RunConfig,
        {"prompts": {"path": str(folder / f"{world.rank}.txt"), "cache": str(folder / "cache")}},
    )
    with pytest.raises(ValueError) as error:
        prepare_embeddings(config, Slow(), world)
    return str(error.value)


def test_a_machine_with_another_file_of_prompts_is_named_before_anything_is_embedded(tmp_path):
    """The order of prompts depends on their number, so ranks with other prompts would not train on
    the prompts of the run.
    """
    for rank, prompts in enumerate(("one\ntwo", "one\nthree")):
        (tmp_path / f"{rank}.txt").write_text(prompts)
    for said in run_ranks(2, other_prompts, tmp_path):
        assert (
            "rank 1 was given another file of prompts than rank 0: prompts.path='2 prompts, sha256"
            in said
        )
    assert not (tmp_path / "cache").exists()


def work(fails: bool) -> tuple[float, str]:
    from tdmvid.parallel import collectives, launch

    world, start, said = launch.start("deepspeed", 4 / 60), time.monotonic(), ""
    try:
        with collectives.first_alone(every=1.0):
            if world.primary:
                time.sleep(8)
                assert not fails, "the first rank failed"
    except AssertionError as error:
        said = str(error)
    collectives.barrier()
    launch.finish()
    return time.monotonic() - start, said.splitlines()[0] if said else ""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.slow
def test_the_first_rank_may_work_alone_for_longer_than_one_wait_may_take(fails):
    (first, said), (other, nothing) = run_ranks(2, work, fails)
    assert (
        first >= 8
        and other >= 7
        and nothing == ""
        and said == ("the first rank failed" if fails else "")
    )


@pytest.mark.slow
def test_ranks_that_end_right_behind_a_collective_end_well(tmp_path):
    """Threads of gloo need the interpreter once more. Without a pause at exit, about every fourth
    such launch aborts.
    """
    (tmp_path / "program.py").write_text(LEAVE_AT_ONCE)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "4",
        str(tmp_path / "program.py"),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


LAUNCH_AND_WAIT = """
import subprocess, sys, time
rank = (
    "import time; from tdmvid.parallel.launch import end_with_parent; end_with_parent();"
    "print('here', flush=True); time.sleep(60)"
)
subprocess.Popen([sys.executable, "-c", rank], start_new_session=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of that")
def test_a_rank_ends_with_a_launcher_that_was_killed():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LAUNCH_AND_WAIT]
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert launcher.stdout.readline() == b"here\n"
    launcher.kill()
    began = time.monotonic()
    assert launcher.stdout.read() == b"", "until the rank has closed it"
    assert time.monotonic() - began < 30
    launcher.wait()
