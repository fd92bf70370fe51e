"""Shared fixtures: few threads, forward processes, tiny CogVideoX pipeline folders."""

import pytest
import torch
from tiny import cogvideox_scheduler, tiny_pipeline

from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP

torch.set_num_threads(1)


@pytest.fixture(params=["vp", "flow"])
def process(request):
    """CogVideoX's table, whose last alpha is 0, and the rectified flow."""
    return TabulatedVP(cogvideox_scheduler().alphas_cumprod) if request.param == "vp" else RectifiedFlow()


@pytest.fixture
def vp():
    return TabulatedVP(cogvideox_scheduler().alphas_cumprod)


@pytest.fixture(scope="session")
def tiny_cogvideox(tmp_path_factory):
    """`tiny_cogvideox(variant)`: the saved folder of a tiny random pipeline, one of VARIANTS, made once a session."""
    made = {}

    def folder(variant: str):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(f"cogvideox_{variant}")
            tiny_pipeline(variant).save_pretrained(made[variant])
        return made[variant]

    return folder
