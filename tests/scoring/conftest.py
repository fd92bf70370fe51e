"""Folders of samples, and a blind study of them."""

import json

import pytest
import torch

from tdmvid.data.video import write_image, write_video
from tdmvid.scoring.study import pair_samples, write_study

PROMPTS = ["a red <b>ring</b>", "a blue\u2028square", "a still lake"]


@pytest.fixture
def folders(tmp_path):
    """Two sample folders of three prompts: A's pictures are light, B's dark; the last pair is of
    videos.
    """
    out = []
    for name, level in (("ours", 0.6), ("theirs", -0.6)):
        folder, lines = tmp_path / name, []
        for index, prompt in enumerate(PROMPTS):
            video = torch.full((3, 9, 32, 32), level)
            file = f"{index}-0.png" if index < 2 else f"{index}-0.mp4"
            (
                write_image(folder / file, video[:, 0])
                if index < 2
                else write_video(folder / file, video, fps=8)
            )
            lines.append(
                json.dumps({"prompt": prompt, "seed": 0, "file": file}, ensure_ascii=False)
            )
        (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        out.append(folder)
    return out


@pytest.fixture
def study(tmp_path, folders):
    page = tmp_path / "study.html"
    write_study(
        page,
        pair_samples(*folders),
        title="Which?",
        question="Which is better?",
        names=("ours", "theirs"),
    )
    return page, json.loads((tmp_path / "study.key.json").read_text())
