"""Programs use expandable segments unless the user has configured the allocator."""

import os

import pytest

from tdmvid.cli.allocator import VARIABLES, expand_segments


@pytest.mark.parametrize("chosen", ["", *VARIABLES])
def test_segments_are_expandable_unless_the_user_set_the_allocator_up(monkeypatch, chosen):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "max_split_size_mb:512")
    expand_segments()
    found = {os.environ.get(name) for name in VARIABLES} - {None}
    assert found == {"max_split_size_mb:512" if chosen else "expandable_segments:True"}
