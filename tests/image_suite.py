"""A small image suite in the layout of VBench-I2V's, drawn with single colours."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tdmvid.data.video import write_image

SUBJECT, SCENERY = "a dog runs", "a lake at dawn"
MOTIONS = ("camera pans left", "camera static")
QUALITY = ("subject_consistency", "motion_smoothness")


def write_image_suite(folder: Path, ratio: str = "1-1", *, images: bool = True) -> Path:
    """Write vbench2_i2v_full_info.json and data/crop/RATIO, and return the folder.

    There are a subject and a scenery, and two camera motions of the scenery without an image name,
    as in the published list.
    """
    rows = [
        {
            "prompt_en": SUBJECT,
            "dimension": ["i2v_subject", *QUALITY],
            "image_type": "animal",
            "image_name": f"{SUBJECT}.png",
        },
        {
            "prompt_en": SCENERY,
            "dimension": ["i2v_background"],
            "image_type": "scenery",
            "image_name": f"{SCENERY}.png",
        },
        *(
            {
                "prompt_en": f"{SCENERY}, {motion}",
                "dimension": ["camera_motion"],
                "image_type": "scenery",
            }
            for motion in MOTIONS
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vbench2_i2v_full_info.json").write_text(json.dumps(rows))
    for prompt, level in ((SUBJECT, -0.8), (SCENERY, 0.6)) if images else ():
        write_image(folder / "data/crop" / ratio / f"{prompt}.png", torch.full((3, 40, 40), level))
    return folder
