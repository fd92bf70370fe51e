"""A damaged export is refused by the name of its file."""

import json

import pytest
from refusals import refused

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
