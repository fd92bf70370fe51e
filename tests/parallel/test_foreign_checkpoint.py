"""An untrusted checkpoint is only data: loading it runs no code from it."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from ranks import run_ranks, save
from refusals import states


class Trap:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def build(zero_stage: int):
    from tdmvid.config import OptimConfig
    from tdmvid.parallel import launch
    from tdmvid.parallel.deepspeed_engine import DeepSpeedEngine

    launch.start("deepspeed", timeout_minutes=0.5)
    torch.manual_seed(0)
    optim = OptimConfig(lr=0.1)
    return DeepSpeedEngine(
        torch.nn.Linear(4, 4), optim, total_steps=2, micro_batch=1, zero_stage=zero_stage
    )


def write(folder: str, zero_stage: int) -> None:
    from tdmvid.parallel import launch

    engine = build(zero_stage)
    engine.backward(engine(torch.ones(1, 4)).square().mean())
    assert engine.step().applied
    save(engine, Path(folder))
    launch.finish()


def read(folder: str, zero_stage: int) -> str:
    """Load a checkpoint; return the error, or ""."""
    from tdmvid.parallel import launch

    engine, said = build(zero_stage), ""
    try:
        engine.load(Path(folder))
    except ValueError as error:
        said = str(error)
    launch.finish()
    return said


def set_traps(folder: Path, sprung: Path) -> list[Path]:
    """Add malicious content to every file that torch loads."""
    paths = sorted(folder.rglob("*.pt"))
    for path in paths:
        torch.save({"was": path.name, "trap": Trap(sprung)}, path)
    return paths


@pytest.mark.parametrize(
    "stage, ranks",
    [(2, 1), *(pytest.param(stage, 2, marks=pytest.mark.slow) for stage in (0, 3))],
)
def test_code_in_a_foreign_checkpoint_is_named_and_never_run(tmp_path, stage, ranks):
    folder, sprung = tmp_path / "student", tmp_path / "sprung"
    run_ranks(ranks, write, str(folder), stage)
    assert run_ranks(ranks, read, str(folder), stage) == [""] * ranks, "our own is loaded"
    name = set_traps(folder, sprung)[0]
    for said in run_ranks(ranks, read, str(folder), stage):
        assert states(said, name) and states(said, "posix.mkdir")
    assert not sprung.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage, other, fits", [(1, 2, True), (2, 3, False), (0, 1, False)])
def test_a_stage_that_cannot_read_the_state_is_refused_with_those_that_can(
    tmp_path, stage, other, fits
):
    folder = tmp_path / "student"
    run_ranks(1, write, str(folder), stage)
    (said,) = run_ranks(1, read, str(folder), other)
    if fits:
        assert said == ""
    else:
        able = {0: "0", 2: "1 or 2"}[stage]
        assert states(said, f"parallel.zero_stage={stage}") and states(said, f"zero_stage={able}")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["zero", "universal"])
def test_code_is_not_run_by_the_conversion_to_another_number_of_ranks_or_from_its_files(
    tmp_path, where
):
    folder, sprung = tmp_path / "student", tmp_path / "sprung"
    run_ranks(2, write, str(folder), 2)
    if where == "universal":
        assert run_ranks(1, read, str(folder), 2) == [""]
    name = set_traps(folder / where, sprung)[0]
    if where == "universal":  # its author adapts the checksums
        from tdmvid.parallel.deepspeed_checkpoint import _sums

        (folder / where / "done").write_bytes(_sums(folder / where))
    (said,) = run_ranks(1, read, str(folder), 2)
    assert states(said, name) and states(said, "posix.mkdir")
    assert not sprung.exists()


@pytest.mark.slow
def test_a_damaged_conversion_is_made_again(tmp_path):
    folder = tmp_path / "student"
    run_ranks(2, write, str(folder), 2)
    assert run_ranks(1, read, str(folder), 2) == [""]
    converted = {path: path.read_bytes() for path in (folder / "universal").rglob("fp32.pt")}
    for path, data in converted.items():
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    assert run_ranks(1, read, str(folder), 2) == [""]
    assert converted == {path: path.read_bytes() for path in converted} != {}


def test_what_slips_past_the_look_is_refused_by_the_load(tmp_path, monkeypatch):
    from tdmvid.parallel import deepspeed_checkpoint  # imported late, because it takes seconds

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trapped, sprung, own = tmp_path / "trapped.pt", tmp_path / "sprung", tmp_path / "own.pt"
    torch.save(Trap(sprung), trapped)
    held = list(deepspeed_checkpoint.HELD)
    torch.save(held, own)
    with deepspeed_checkpoint._data_only():
        with pytest.raises(pickle.UnpicklingError):
            torch.load(trapped, weights_only=False)
        assert torch.load(own, weights_only=False) == held
    assert not sprung.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_file_of_another_kind_is_named(tmp_path):
    from tdmvid.parallel import deepspeed_checkpoint  # imported late, because it takes seconds

    path = tmp_path / "legacy.pt"
    for content in (b"", b"text", pickle.dumps(Trap(tmp_path / "sprung"))):
        path.write_bytes(content)
        assert states(deepspeed_checkpoint._more_than_data(path), path)
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    assert states(deepspeed_checkpoint._more_than_data(path), path)
    assert not (tmp_path / "sprung").exists()
