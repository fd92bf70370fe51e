"""Fixtures for DeepSpeed runs: the model, and reference runs in one process."""

from __future__ import annotations

import pytest
from deepspeed_runs import (
    Case,
    run,
    write_model,
)
from ranks import run_ranks


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """Return a pipeline folder with a tiny transformer."""
    return write_model(tmp_path_factory.mktemp("cogvideox"))


@pytest.fixture(scope="session")
def reference(model):
    """Return a cache of runs in one process."""
    runs = {}

    def of(**choices) -> dict:
        case = Case(model, "torch", **choices)
        if case not in runs:
            runs[case] = run_ranks(1, run, case)[0]
        return runs[case]

    return of
