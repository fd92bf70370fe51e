"""Every error of a library about a file becomes one line that names the file."""

import json

import pytest
import safetensors.torch
from refusals import refused

from tdmvid.data.reading import LONGEST, out_of_memory, raised_by_library, reading


def fail(error):
    raise error


@pytest.mark.parametrize(
    "call",
    [
        lambda: safetensors.torch.load(b"x" * 100),
        lambda: json.loads("{"),
        lambda: next(iter(())),
        lambda: {}["model_max_length"],
        lambda: fail(RecursionError("maximum recursion depth exceeded")),
        lambda: fail(OSError("no file\nof this name")),
        lambda: fail(NotImplementedError()),
        lambda: fail(RuntimeError("size mismatch " * 10**4)),
    ],
)
def test_the_file_is_named_in_one_line(tmp_path, call):
    folder, advice = tmp_path / "vae", "download it again"
    with refused(folder, advice) as caught, reading(folder, advice=advice):
        call()
    assert len(str(caught.value)) < LONGEST + 200


def test_what_the_project_says_itself_stays_as_it_is():
    with refused("a=1 is wrong") as caught, reading("folder"):
        raise ValueError("a=1 is wrong")
    assert str(caught.value) == "a=1 is wrong" and not raised_by_library(caught.value)


def test_memory_is_no_fault_of_a_file():
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")):
        with pytest.raises(type(error)), reading("folder"):
            raise error
        assert out_of_memory(error)
    assert not out_of_memory(ValueError("out of memory"))
