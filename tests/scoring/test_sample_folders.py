"""Which files of a folder are samples, and of which prompt."""

import json

import pytest

from tdmvid.scoring.sample_folders import samples_of


def found(folder, *names):
    """Write empty files and return the prompt of each sample, by file name."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return {path.relative_to(folder).as_posix(): it for path, it in samples_of(folder).items()}


@pytest.mark.parametrize("sign", ["-", "_", " "])
def test_files_that_differ_in_a_number_after_a_sign_are_seeds_of_one_prompt(tmp_path, sign):
    prompts = found(tmp_path, f"a ring{sign}0.mp4", f"a ring{sign}12.mp4", f"b/a ring{sign}0.mp4")
    assert list(prompts.values()) == ["a ring", "a ring", "b/a ring"]


def test_a_number_alone_is_no_seed(tmp_path):
    names = ["-2.png", "0.mp4", "1.mp4", "_3.png", "b/0.mp4", "b/-1.mp4", "ring0.mp4", "ring1.mp4"]
    assert len(set(found(tmp_path, *names).values())) == len(names)


def write_manifest(folder, *entries):
    for entry in entries:
        (folder / entry["file"]).touch()
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)))


def test_a_copy_under_another_name_is_not_counted(tmp_path):
    """As `tdmvid sample` of earlier versions made them when the prompts moved in their list."""
    ring, cat = {"prompt": "a ring", "seed": 0}, {"prompt": "a cat", "image_sha256": "77"}
    entries = [
        ring | {"file": "0_ring-0.mp4"},
        ring | {"file": "1_ring-0.mp4"},
        ring | {"file": "1_ring-1.mp4", "seed": 1},
        ring | {"file": "1_ring-2.mp4", "image_sha256": "1f"},
        *(cat | {"file": f"cat-{seed}.mp4"} for seed in (0, 1)),  # may differ: no seed is stated
    ]
    write_manifest(tmp_path, *entries)
    (tmp_path / "other.mp4").touch()
    files = ["0_ring-0.mp4", "1_ring-1.mp4", "1_ring-2.mp4", "cat-0.mp4", "cat-1.mp4", "other.mp4"]
    assert [path.name for path in samples_of(tmp_path)] == files
    assert [path.name for path in samples_of(tmp_path, limit=2)] == files[:2]


def test_hidden_files_are_samples_if_the_manifest_lists_them(tmp_path):
    """`tdmvid sample --names prompt` writes them for a prompt that begins with a dot."""
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / ".outside-0.mp4").touch()
    (folder / ".a dot-1.mp4").touch()
    prompts = [".a dot", "a cat"]
    entries = [{"file": f"{prompt}-0.mp4", "prompt": prompt, "seed": 0} for prompt in prompts]
    write_manifest(folder, *entries)
    with (folder / "manifest.jsonl").open("a") as file:
        for name in ("../.outside-0.mp4", ".gone-0.mp4", ".", "..", ".a\0b.mp4", ".b/c.mp4"):
            file.write("\n" + json.dumps({"file": name, "prompt": name, "seed": 0}))
    assert list(samples_of(folder).values()) == prompts
    (folder / "a cat-0.mp4").unlink()
    assert list(samples_of(folder).values()) == prompts[:1]
