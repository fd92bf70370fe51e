"""Settings that a model family does not support are refused before anything is loaded."""

from types import SimpleNamespace

import pytest
from refusals import refused

from tdmvid.backbones.registry import families
from tdmvid.config import load_config
from tdmvid.roles.rules import check_family


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "cudnn"])
def test_a_kernel_of_the_family_is_taken(kernel):
    config = load_config("shapes_4nfe", [f"model.attention={kernel}"])
    family = SimpleNamespace(kernels=("sdpa", "cudnn"), pipeline_class="Any", takes_images=False)
    check_family(config, family)


def test_a_single_frame_that_is_given_is_refused():
    config = load_config("shapes_4nfe", ["video.frames=1", "model.attention=auto"])
    with refused("video.frames=1", "WanImageToVideoPipeline", "more frames"):
        check_family(config, families()["WanImageToVideoPipeline"])
    check_family(config, families()["WanPipeline"])


@pytest.mark.parametrize("name", sorted(families()))
def test_a_kernel_that_a_family_lacks_is_refused_with_those_it_has(name):
    family = families()[name]
    lacking = {"float32", "cudnn", "flash", "xformers"} - set(family.kernels)
    for kernel in sorted(lacking):
        config = load_config("shapes_4nfe", [f"model.attention={kernel}"])
        with refused(f"model.attention='{kernel}'", name, "'auto'", *map(repr, family.kernels)):
            check_family(config, family)
