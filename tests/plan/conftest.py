"""Plans of the tiny run, traced once for all of them."""

from functools import partial

import pytest

from tdmvid.plan.describe import describe
from tdmvid.plan.plan import make_plan


@pytest.fixture(scope="session")
def traced(tiny_run, tmp_path_factory):
    """A plan of the tiny run: others do not trace again what costs the same."""
    return make_plan(tiny_run(tmp_path_factory.mktemp("traced")))


@pytest.fixture
def planned(traced):
    return partial(make_plan, like=traced)


@pytest.fixture
def plan(planned):
    """`plan(config)`: the plan as text."""
    return lambda config, **choices: describe(planned(config, **choices))
