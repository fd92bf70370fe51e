"""A rank that hangs says where; one that does not leaves nothing behind."""

import time

from tdmvid.parallel import launch
from tdmvid.train.watch import Watch


def hang_here() -> None:
    time.sleep(0.5)


def test_an_iteration_that_outlasts_the_limit_writes_down_where_it_stands(tmp_path, capsys):
    watch = Watch(tmp_path, launch.start("none"), timeout_minutes=1)
    watch.seconds = 0.1
    with watch:
        watch.beat(0)
        hang_here()
    assert "hang_here" in (tmp_path / "stuck" / "rank_0000.txt").read_text()
    assert f"{tmp_path / 'stuck'} says where every rank stood" in capsys.readouterr().err


def test_a_run_that_moves_on_leaves_no_file(tmp_path):
    watch = Watch(tmp_path, launch.start("none"), timeout_minutes=1)
    watch.seconds = 60.0
    with watch:
        for step in range(3):
            watch.beat(step)
    assert list((tmp_path / "stuck").iterdir()) == []
