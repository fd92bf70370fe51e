"""Run a function in several ranks on this machine.

The ranks are forked from a server process that has imported the large packages and has no threads.
Therefore they start in a second and do not inherit the thread pools of the test process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from pathlib import Path

HEAVY = [
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "peft.tuners.lora",
    "tdmvid.backbones.cogvideox",
]


def save(engine, folder: Path) -> None:
    """Write the state of an engine as a checkpoint does."""
    from tdmvid.data.files import write_files

    write_files({folder / name: data for name, data in engine.snapshot().items()})


def _rank_main(queue, function, arguments: tuple, rank: int, size: int, port: int) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_RANK=str(rank),
        LOCAL_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        queue.put((rank, function(*arguments), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))


def run_ranks(size: int, function, *arguments, seconds: float = 240.0) -> list:
    """Call function(*arguments) in `size` ranks, and return the results by rank. Results must not
    be tensors, which would share memory.
    """
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = context.Queue()
    ranks = [
        context.Process(target=_rank_main, args=(queue, function, arguments, rank, size, port))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        answers = [queue.get(timeout=seconds) for _ in ranks]
    finally:
        for process in ranks:
            process.join(2)
            process.kill()
    failures = [f"rank {rank}:\n{error}" for rank, _, error in answers if error]
    assert not failures, "\n".join(failures)
    return [result for _, result, _ in sorted(answers, key=lambda answer: answer[0])]
