"""A checkpoint with a single wrong bit is detected, and skipped with a message."""

import json
import random

import pytest
from refusals import refused, states

from tdmvid.data.checkpoints import (
    META,
    checksum,
    find_damage,
    latest,
    read_meta,
    step_folder,
    whole,
    write_meta,
)

FILES = {"student/weights.safetensors": bytes(range(256)), "student/optimizer.pt": b"o" * 999}
STATE = {"step": 4, "fingerprint": {"lr": 1e-5, "nan": float("nan"), "k": {3: None}}}


def write(folder, step=4, files=FILES):
    path = step_folder(folder, step)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    write_meta(path, STATE | {"step": step, "files": {n: checksum(d) for n, d in files.items()}})
    return path


def flip(file, bit):
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_a_file_is_found_and_the_file_named(tmp_path, name):
    path = write(tmp_path)
    assert not find_damage(path)
    flip(path / name, random.randrange(8 * len(FILES[name])))
    assert states(find_damage(path), name)
    with refused(path, name):
        whole(path)


@pytest.mark.parametrize("name", ["student/gone.pt", "/dev/zero"])
def test_what_is_no_file_of_the_checkpoint_is_named_and_not_read(tmp_path, name):
    path = write(tmp_path)
    meta = read_meta(path)
    write_meta(path, meta | {"files": meta["files"] | {name: checksum(b"")}})
    assert states(find_damage(path), name)


def test_every_flipped_bit_of_what_a_checkpoint_says_of_itself_is_found(tmp_path):
    path = write(tmp_path, files={"a": b"1"})
    meta, written = read_meta(path), (path / META).read_bytes()
    for bit in range(random.randrange(37), 8 * len(written), 37):
        flip(path / META, bit)
        with refused(path / META):
            read_meta(path)
        (path / META).write_bytes(written)
    assert repr(read_meta(path)) == repr(meta)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b"null", b"[" * 100_000, b"\xff\xfe"],
    ids=["empty", "object", "list", "null", "deep", "bytes"],
)
def test_what_is_no_checkpoint_s_json_is_refused_in_one_line(tmp_path, content):
    path = write(tmp_path)
    (path / META).write_bytes(content)
    with refused(path / META):
        read_meta(path)
    assert states(find_damage(path), META)


def test_the_newest_whole_one_is_taken_and_each_that_is_passed_over_is_named(tmp_path, capsys):
    paths = [write(tmp_path, step) for step in (2, 4, 6, 8, 10)]
    flip(paths[4] / "student/optimizer.pt", 77)
    (paths[3] / META).unlink()
    (paths[2] / "student/weights.safetensors").unlink()
    assert latest(tmp_path) == paths[1]
    said = capsys.readouterr().err.splitlines()
    facts = ["student/optimizer.pt", META, "student/weights.safetensors"]
    assert len(said) == 3
    for line, path, fact in zip(said, reversed(paths[2:]), facts, strict=True):
        assert states(line, path) and states(line, fact)


def test_who_needs_a_part_reads_that_part_only(tmp_path):
    path = write(tmp_path, files=FILES | {"fake/optimizer.pt": b"f"})
    flip(path / "fake/optimizer.pt", 0)
    assert whole(path, part="student") == latest(tmp_path, part="student") == path
    assert latest(tmp_path, report=False) is None


def test_a_checkpoint_from_before_checksums_is_checked_by_size(tmp_path):
    path = write(tmp_path)
    sizes = {name: len(data) for name, data in FILES.items()}
    (path / META).write_text(json.dumps({"step": 4, "fingerprint": {}, "files": sizes}))
    assert whole(path) == path
    (path / "student/optimizer.pt").write_bytes(b"short")
    with refused(path, "student/optimizer.pt", 5, 999):
        whole(path)
