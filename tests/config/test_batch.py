"""`batch.total` is the sum over all ranks, or is refused with the nearest possible values."""

import pytest
from refusals import refused

from tdmvid.config import (
    BatchConfig,
    RunConfig,
    from_dict,
    global_batch,
    load_config,
    share_batch,
)


def run(**batch):
    return RunConfig(batch=BatchConfig(**batch))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_any_number_of_ranks_makes_the_total(ranks, micro):
    shared = share_batch(run(micro=micro, total=96), ranks).batch
    assert global_batch(shared, ranks) == 96 and shared.micro == micro


def test_a_run_without_a_total_keeps_its_accumulation():
    config = run(micro=2, accumulation=3)
    assert share_batch(config, 5) == config and global_batch(config.batch, 5) == 30


def test_a_shared_batch_is_shared_once():
    once = share_batch(run(micro=2, total=32), 4)
    assert share_batch(once, 4) == once


@pytest.mark.parametrize(
    "micro, total, ranks, facts",
    [
        (1, 8, 6, ("batch.total=6 or 12",)),
        (3, 8, 1, ("batch.total=6 or 9", "batch.micro=2 or 4")),
        (32, 256, 16, ("batch.total=512", "batch.micro=16")),
        (5, 4, 1, ("batch.total=5", "batch.micro=4")),
        (1, 10**7, 7, ("batch.total=9999997 or 10000004",)),
    ],
)
def test_a_total_that_does_not_divide_is_refused_with_the_nearest_values(
    micro, total, ranks, facts
):
    with refused(f"batch.total={total}", f"batch.micro={micro}", *facts):
        share_batch(run(micro=micro, total=total), ranks)


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_the_values_that_a_refusal_names_are_accepted(ranks):
    with pytest.raises(ValueError) as caught:
        share_batch(run(micro=7, total=48), ranks)
    named = str(caught.value).partition(": set ")[2]
    for part in named.split(", or "):
        setting, _, values = part.partition("=")
        for value in values.split(" or "):
            changed = {"micro": 7, "total": 48} | {setting.removeprefix("batch."): int(value)}
            share_batch(run(**changed), ranks)


def test_another_accumulation_beside_a_total_is_refused():
    with refused("batch.accumulation=3", "batch.total=16"):
        share_batch(run(micro=2, accumulation=3, total=16), 4)


@pytest.mark.parametrize("total", [-1, 1.5, "8"])
def test_a_total_is_a_whole_number(total):
    with refused("batch.total"):
        from_dict(RunConfig, {"batch": {"total": total}})


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_ready_config_trains_the_same_batch_on_one_rank_and_on_eight(ranks):
    for name, total in (("sd15_4nfe", 256), ("sdxl_4nfe_512", 64), ("wan14b_4nfe", 8)):
        assert global_batch(share_batch(load_config(name), ranks).batch, ranks) == total
