"""One rank works beside others that wait."""

import time

import pytest
from ranks import run_ranks

SECONDS, SHARDS = 1.6, 4


class Slow:
    """A backbone whose text encoder takes its time."""

    def __init__(self):
        from torch import nn

        self.network = nn.Linear(1, 1).requires_grad_(False)

    def text_fingerprint(self):
        return "slow"

    def release_text(self):
        pass

    def encode_prompts(self, prompts):
        import torch

        from tdmvid.diffusion.denoiser import Cond

        time.sleep(SECONDS)
        return Cond({"prompt_embeds": torch.full((len(prompts), 1, 1), float(len(prompts[0])))})


def embed(prompts, cache, timeout):
    from tdmvid.config import RunConfig, from_dict
    from tdmvid.data import embeddings as shards
    from tdmvid.parallel import launch
    from tdmvid.train.setup import embeddings

    shards.PROMPTS_PER_SHARD = 1
    world = launch.start("deepspeed", timeout / 60)
    start = time.monotonic()
    cache, read = embeddings(from_dict(RunConfig, {"prompts": {"path": str(prompts), "cache": str(cache)}}), Slow(), world)
    return time.monotonic() - start, cache.get(read)["prompt_embeds"].flatten().tolist()


def test_ranks_wait_for_prompts_for_longer_than_one_wait_may_take(tmp_path):
    """One rank embeds them; the others hear of every shard, so that thousands of prompts do not end the job."""
    (tmp_path / "prompts.txt").write_text("\n".join("a" * (n + 1) for n in range(SHARDS)))
    timeout = 6.0
    for seconds, found in run_ranks(2, embed, tmp_path / "prompts.txt", tmp_path / "cache", timeout):
        assert seconds > SECONDS * (SHARDS + 1) > timeout and found == [1, 2, 3, 4]


def work(fails: bool) -> tuple[float, str]:
    from tdmvid.parallel import launch

    world, start, said = launch.start("deepspeed", 4 / 60), time.monotonic(), ""
    try:
        with launch.first_alone(every=1.0):
            if world.primary:
                time.sleep(8)
                assert not fails, "the first rank failed"
    except AssertionError as error:
        said = str(error)
    launch.barrier()
    launch.finish()
    return time.monotonic() - start, said.splitlines()[0] if said else ""


@pytest.mark.parametrize("fails", [False, True])
def test_the_first_rank_may_work_alone_for_longer_than_one_wait_may_take(fails):
    (first, said), (other, nothing) = run_ranks(2, work, fails)
    assert first >= 8 and other >= 7 and nothing == "" and said == ("the first rank failed" if fails else "")
