"""Which files of a folder are samples, and of which prompt."""

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
