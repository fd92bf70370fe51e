"""Fixtures: one backbone of each family and variant."""

import pytest
from contract_cases import PARAMS, Case
from families import BUILDERS


@pytest.fixture(scope="module", params=PARAMS, ids=lambda case: "-".join(filter(None, case)))
def case(request, tmp_path_factory):
    name, variant = request.param
    if name not in BUILDERS:
        pytest.fail(
            f"{name} has no builder of a tiny pipeline in tests/families: add one, see its"
            " docstring"
        )
    return Case(name, variant, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def backbone(case):
    return case.backbone()
