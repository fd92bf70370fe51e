"""Plans of the tiny run, which is traced only once."""

from functools import partial

import pytest

from tdmvid.plan.describe import describe
from tdmvid.plan.make import make_plan


@pytest.fixture(scope="session")
def traced(tiny_run, tmp_path_factory):
    """A traced plan of the tiny run. Plans made with `like=traced` reuse its traces."""
    return make_plan(tiny_run(tmp_path_factory.mktemp("traced")))


@pytest.fixture
def planned(traced):
    """`planned(config, ...)`: a plan that reuses the traces of the tiny run."""
    return partial(make_plan, like=traced)


@pytest.fixture
def plan(planned):
    """`plan(config)`: the plan as text."""
    return lambda config, **choices: describe(planned(config, **choices))
