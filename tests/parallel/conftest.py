"""The model of the runs on DeepSpeed, and the runs in one process that they must repeat."""

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
    """A pipeline folder with a tiny transformer."""
    return write_model(tmp_path_factory.mktemp("cogvideox"))


@pytest.fixture(scope="session")
def reference(model):
    """One-process runs, made once each."""
    runs = {}

    def of(**choices) -> dict:
        case = Case(model, "torch", **choices)
        if case not in runs:
            runs[case] = run_ranks(1, run, case)[0]
        return runs[case]

    return of
