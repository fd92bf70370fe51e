"""Shared fixtures: few threads, forward processes, tiny CogVideoX pipeline folders."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
import torch
from tiny import cogvideox_scheduler, tiny_pipeline

from tdmvid.diffusion.process import RectifiedFlow, TabulatedVP

torch.set_num_threads(1)
signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a shell turns it off for what it starts in the background, and programs under test inherit that


@pytest.fixture(scope="session")
def load_program():
    """`load_program("launch/train.py")`: one of the programs as a module."""

    def load(path):
        name = path.removesuffix(".py").replace("/", "_")
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(params=["vp", "flow"])
def process(request):
    """CogVideoX's table, whose last alpha is 0, and the rectified flow."""
    return (
        TabulatedVP(cogvideox_scheduler().alphas_cumprod)
        if request.param == "vp"
        else RectifiedFlow()
    )


@pytest.fixture
def vp():
    return TabulatedVP(cogvideox_scheduler().alphas_cumprod)


@pytest.fixture(scope="session")
def tiny_cogvideox(tmp_path_factory):
    """`tiny_cogvideox(variant)`: the saved folder of a tiny random pipeline, one of VARIANTS, made
    once a session.
    """
    made = {}

    def folder(variant: str):
        if variant not in made:
            made[variant] = tmp_path_factory.mktemp(f"cogvideox_{variant}")
            tiny_pipeline(variant).save_pretrained(made[variant])
        return made[variant]

    return folder
