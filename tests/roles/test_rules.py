"""Settings that a model family does not support are refused before anything is loaded."""

from types import SimpleNamespace

import pytest
from refusals import refused

from tdmvid.backbones.registry import families
from tdmvid.config import load_config
from tdmvid.roles.rules import check_kernel


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "cudnn"])
def test_a_kernel_of_the_family_is_taken(kernel):
    config = load_config("shapes_4nfe", [f"model.attention={kernel}"])
    check_kernel(config, SimpleNamespace(kernels=("sdpa", "cudnn"), pipeline_class="Any"))


@pytest.mark.parametrize("name", sorted(families()))
def test_a_kernel_that_a_family_lacks_is_refused_with_those_it_has(name):
    family = families()[name]
    lacking = {"float32", "cudnn", "flash", "xformers"} - set(family.kernels)
    for kernel in sorted(lacking):
        config = load_config("shapes_4nfe", [f"model.attention={kernel}"])
        with refused(f"model.attention='{kernel}'", name, "'auto'", *map(repr, family.kernels)):
            check_kernel(config, family)
