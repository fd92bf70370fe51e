import errno
import hashlib
import json
import os
import stat
import time
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tdmvid.data import files
from tdmvid.data.files import (
    PART,
    atomic_path,
    check_writable,
    file_fingerprint,
    remove_parts,
    sort_metadata,
    sync,
    write_json,
    write_text,
)


def test_a_folder_that_cannot_be_written_is_found_and_none_is_created(tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("notes.txt", "notes.txt/a/b", "link", "link/a"):
        with refused(f"--out={str(tmp_path / name)!r}"):
            check_writable(tmp_path / name, "--out")
    check_writable(tmp_path / "new" / "folder", "--out")
    check_writable(tmp_path, "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "notes.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "score.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as part:
        part.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_only_when_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "video.mp4"
    with atomic_path(path) as part:
        assert part.parent == path.parent and part.suffix == ".mp4" and PART in part.name
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_of_the_longest_allowed_length_can_be_written(tmp_path):
    path = tmp_path / ("p" * 251 + ".txt")
    write_text(path, "x")
    assert path.read_text() == "x"


def test_json_comes_back_equal_and_a_bad_object_leaves_the_old_one(tmp_path):
    path = tmp_path / "run.json"
    run = {"steps": 3, "prompt": "un chat assis à l'ombre", "grid": [1.0, 0.25]}
    write_json(path, run)
    with pytest.raises(TypeError):
        write_json(path, {"steps": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == run


def test_a_file_of_a_private_writer_may_be_read_as_others_may(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "a.bin") as part:
        part.touch(mode=0o600)
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_equal_safetensors_have_equal_bytes(tmp_path):
    """The library orders metadata by a hash that differs between files."""
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {"format": "pt", "alpha": "4", "über": '{\n "x": "\\u00e9\\n"}', "z": "\t\x01"}
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in paths:
        save_file(tensors, path, metadata=metadata)
        sort_metadata(path)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata() == metadata
    loaded = load_file(paths[0])
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_parts_of_the_killed_are_removed_and_nothing_else(tmp_path):
    kept = {tmp_path / name for name in ("a.mp4", ".partners", ".0123456789.part", "x.part.mp4")}
    parts = set()
    for suffix in ("", ".mp4", ".safetensors"):
        with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / f"a{suffix}") as part:
            parts.add(part)
            raise KeyboardInterrupt
    for path in kept | parts:
        path.touch()
    remove_parts(tmp_path)
    assert set(tmp_path.iterdir()) == kept
    remove_parts(tmp_path / "missing")


def test_a_fingerprint_is_of_the_whole_content(tmp_path):
    """One value in the middle of the weights, like a fine-tune of one layer."""
    path, weights = tmp_path / "model.safetensors", bytearray(6 << 20)
    path.write_bytes(weights)
    first = file_fingerprint([path], "bfloat16")
    assert first == file_fingerprint([path], "bfloat16") != file_fingerprint([path], "float32")
    weights[3 << 20] ^= 1
    path.write_bytes(weights)
    assert file_fingerprint([path], "bfloat16") != first


def test_a_user_without_a_home_folder_reads_large_files_each_time(tmp_path, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(files, "LARGE_FILE", 1)
    (tmp_path / "a").write_text("large")
    assert file_fingerprint([tmp_path / "a"]) == file_fingerprint([tmp_path / "a"])


def test_a_large_file_is_read_once_and_again_after_any_change(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(files, "LARGE_FILE", 100)
    reads, digest = [], hashlib.file_digest

    def counted(file, kind):
        reads.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 1000)
    first, before = file_fingerprint([path]), path.stat()
    assert file_fingerprint([path]) == first and len(reads) == 1
    time.sleep(0.02)  # the clock of a file system is coarse
    path.write_bytes(b"a" * 500 + b"b" + b"a" * 499)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_fingerprint([path]) != first and len(reads) == 2
    (tmp_path / "home" / "tdmvid" / "digests.json").write_text("[broken")
    assert file_fingerprint([path]) != first and len(reads) == 3


def test_a_folder_that_cannot_be_synced_still_gets_its_file(tmp_path, monkeypatch):
    """Some shared folders of hosts and FUSE mounts answer EINVAL."""
    fsync = os.fsync

    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    with atomic_path(tmp_path / "a.txt") as part:
        part.write_text("kept")
    assert (tmp_path / "a.txt").read_text() == "kept"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_could_not_be_written_is_an_error(tmp_path, monkeypatch, number):
    def failing(descriptor):
        raise OSError(number, "failed")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="failed"):
        sync(tmp_path)
