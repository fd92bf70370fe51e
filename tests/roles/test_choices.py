"""Automatic choices of a run: the attention kernel, and whether blocks are compiled."""

import pytest
import torch
from refusals import refused

from tdmvid.backbones import attention
from tdmvid.backbones.attention import check_attention, choose_attention
from tdmvid.backbones.cogvideox import CogVideoX
from tdmvid.config import RunConfig, load_config
from tdmvid.roles import build

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def working(monkeypatch):
    """`working(capability, kernels)`: a GPU on which these kernels work."""

    def put(capability, kernels):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(attention, "_works", lambda kernel, device, dtype: kernel in kernels)

    return put


@pytest.mark.parametrize(
    "capability, kernels, kept, chosen",
    [
        ((9, 0), ("cudnn", "flash", "xformers"), False, "cudnn"),
        ((9, 0), ("flash", "xformers"), False, "flash"),
        ((8, 0), ("cudnn", "flash"), False, "flash"),
        ((7, 5), ("xformers",), False, "xformers"),
        ((7, 5), ("xformers",), True, "sdpa"),
        ((7, 0), (), False, "sdpa"),
    ],
)
def test_the_first_kernel_that_works_is_chosen(working, capability, kernels, kept, chosen):
    working(capability, kernels)
    assert choose_attention(CogVideoX.kernels, GPU, torch.bfloat16, kept=kept) == chosen


def test_there_is_no_choice_on_a_cpu_in_float32_or_for_a_family_of_one_kernel(working):
    working((9, 0), ("cudnn", "flash"))
    assert choose_attention(CogVideoX.kernels, CPU, torch.bfloat16) == "sdpa"
    assert choose_attention(CogVideoX.kernels, GPU, torch.float32) == "sdpa"
    assert choose_attention(("sdpa", "xformers"), GPU, torch.bfloat16) == "sdpa"
    with refused("model.attention='cudnn'", "cpu", "'auto'"):
        check_attention("cudnn", CPU)


def test_long_runs_on_a_gpu_are_compiled_where_nothing_forbids_it(monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(build.shutil, "which", lambda name: name)

    def compiles(device, *changes) -> bool:
        return build.compiles(load_config("cogvideox2b_4nfe", list(changes)), device)

    assert RunConfig().parallel.compile == "auto"
    assert compiles(GPU) and not compiles(CPU) and not compiles(GPU, "steps=20")
    assert not compiles(GPU, "parallel.keep_attention=true")
    assert not compiles(GPU, "model.quantize=int8")
    assert not compiles(GPU, "parallel.compile=false") and compiles(CPU, "parallel.compile=true")
    monkeypatch.setattr(build.launch, "distributed", lambda: True)
    assert not compiles(GPU) and compiles(GPU, "parallel.zero_stage=2")
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert not compiles(GPU, "parallel.zero_stage=2")


def test_a_missing_xformers_is_refused_on_a_gpu_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with refused("model.attention='xformers'", "pip install -e '.[xformers]'", "'auto'"):
        check_attention("xformers", torch.device("cuda"))
