"""A damaged export is refused by the name of its file."""

import json

import pytest
import torch
from refusals import refused

from tdmvid.export import load
from tdmvid.export.load import load_pipeline

FACTS = {"model": {}, "network": "transformer", "pipeline": "CogVideoXPipeline", "scheduler": {}}


@pytest.mark.parametrize(
    "text, fact",
    [
        ("{", "JSON"),
        ("[1]", "JSON"),
        (json.dumps({key: FACTS[key] for key in FACTS if key != "model"}), "model"),
        (json.dumps(FACTS | {"pipeline": "logging"}), "logging"),
    ],
)
def test_a_damaged_export_is_refused(tmp_path, text, fact):
    (tmp_path / "export.json").write_text(text)
    with refused(tmp_path / "export.json", fact):
        load_pipeline(tmp_path)


def test_a_dtype_is_one_of_three_as_text_or_of_torch(tmp_path, monkeypatch):
    facts = FACTS | {"model": {"path": str(tmp_path), "dtype": "float32", "revision": None}}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    asked = []
    monkeypatch.setattr(load, "_load_base", lambda *given: asked.append(given[-1]) or 1 / 0)
    for dtype in (None, "bfloat16", torch.float16):
        with pytest.raises(ZeroDivisionError):
            load_pipeline(tmp_path, dtype=dtype)
    assert asked == [torch.float32, torch.bfloat16, torch.float16]
    with refused("dtype='fp16'", "float16"):
        load_pipeline(tmp_path, dtype="fp16")


def test_a_base_that_is_on_another_machine_is_named_with_the_remedy(tmp_path):
    elsewhere = tmp_path / "models" / "base"
    facts = FACTS | {"model": {"path": str(elsewhere), "dtype": "float32", "revision": None}}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    with refused(tmp_path / "export.json", elsewhere, "base="):
        load_pipeline(tmp_path)
    with refused("base=", tmp_path / "none"):
        load_pipeline(tmp_path, base=str(tmp_path / "none"))
