"""Ranks and accumulation only change which rank works on which micro-batch of an iteration."""

from dataclasses import replace

import pytest
import torch

from tdmvid.distill.iteration import Outcome
from tdmvid.parallel import collectives, launch
from tdmvid.parallel.sequence import PlannedGroup
from tdmvid.train import trainer
from tdmvid.train.run import build_run


@pytest.fixture
def handed_out(tiny_run, tmp_path, monkeypatch):
    """`handed_out(step, ranks, sequence, *changes)`: what each rank passes to an iteration of 4
    micro-batches: its number and that of its first micro-batch, conditions, grid and generators.
    """
    runs, asked = {}, []

    def iterate(step, conds, shape, *, grid, streams, first_stream=0, **_):
        asked.append((first_stream, conds, grid, streams))
        return Outcome({})

    monkeypatch.setattr(trainer, "iterate", iterate)
    monkeypatch.setattr(collectives, "mean", lambda scalars: scalars)

    def handed_out(step, ranks, sequence=1, *changes):
        accumulation = 4 * sequence // ranks
        changes = (*changes, f"batch.accumulation={accumulation}", "batch.micro=2")
        if changes not in runs:
            runs[changes] = build_run(tiny_run(tmp_path, *changes), launch.start("none"))
        group = PlannedGroup(sequence) if sequence > 1 else None
        world = replace(runs[changes].world, size=ranks, sequence=group)
        asked.clear()
        for rank in range(ranks):
            trainer._iteration(replace(runs[changes], world=replace(world, rank=rank)), step)
        return list(asked)

    return handed_out


def by_stream(handed):
    """Return the text of every micro-batch by its global number."""
    return {
        first + micro: cond["prompt_embeds"]
        for first, conds, *_ in handed
        for micro, cond in enumerate(conds)
    }


@pytest.mark.parametrize("step", [0, 3])
def test_micro_batches_have_the_prompts_and_numbers_of_one_process_on_any_ranks(handed_out, step):
    whole = by_stream(handed_out(step, 1))
    assert sorted(whole) == [0, 1, 2, 3]
    assert len({text.sum().item() for text in whole.values()}) == 4  # 8 prompts, 2 in each
    for ranks in (2, 4):
        found = by_stream(handed_out(step, ranks))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[stream], text) for stream, text in whole.items())


def test_ranks_that_share_a_video_work_on_the_same_micro_batches(handed_out):
    handed, whole = handed_out(1, 4, 2), by_stream(handed_out(1, 1))
    assert [first for first, *_ in handed] == [0, 0, 2, 2]
    for first, conds, *_ in handed:
        for micro, cond in enumerate(conds):
            assert torch.equal(cond["prompt_embeds"], whole[first + micro])


def test_all_ranks_train_the_same_grid_and_all_grids_have_their_turn(handed_out):
    seen = []
    for step in range(12):
        grids = [grid for *_, grid, _ in handed_out(step, 4, 1, "objective.step_set=[2,4]")]
        assert all(grid == grids[0] for grid in grids)
        seen.append(grids[0].steps)
    assert {2, 4} == set(seen) and 2 <= seen.count(2) <= 10


def test_the_seed_of_the_run_decides_its_noise_and_its_prompts(handed_out):
    def drawn(*changes):
        (first, conds, _, streams) = handed_out(0, 1, 1, *changes)[0]
        z = torch.randn(4, generator=streams.generator(0, "z", first))
        return z, torch.cat([cond["prompt_embeds"] for cond in conds])

    (z, text), (again, same), (other, mixed) = drawn("seed=5"), drawn("seed=5"), drawn("seed=6")
    assert torch.equal(z, again) and torch.equal(text, same)
    assert not torch.equal(z, other) and not torch.equal(text, mixed)
