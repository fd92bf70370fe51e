"""The networks that a run builds: how many weights they hold, and what that changes."""

import json

from tdmvid.parallel import launch
from tdmvid.train.plan import make_plan
from tdmvid.train.setup import build_run
from tdmvid.train.trainer import train


def frozen_bytes(config) -> int:
    """Of all frozen tensors that the roles hold, each counted once."""
    engines = build_run(config, launch.start("none")).engines
    storages = {p.data_ptr(): p.nbytes for engine in engines.values() for p in engine.module.parameters() if not p.requires_grad}
    return sum(storages.values())


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss/student"], row["loss/fake"]) for row in rows]


def test_a_base_of_its_own_for_the_fake_holds_the_weights_twice_and_changes_no_number(tiny_run, tmp_path, loop_only):
    shared, own = tiny_run(tmp_path / "shared"), tiny_run(tmp_path / "own", "parallel.share_base=false")
    assert frozen_bytes(own) == 2 * frozen_bytes(shared)
    assert [make_plan(config).memory()["frozen weights"] for config in (shared, own)] == [frozen_bytes(shared), frozen_bytes(own)]
    assert losses(train(own)) == losses(train(shared))
