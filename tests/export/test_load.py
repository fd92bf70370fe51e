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


def test_a_base_that_is_on_another_machine_is_named_with_the_remedy(tmp_path):
    elsewhere = tmp_path / "models" / "base"
    facts = FACTS | {"model": {"path": str(elsewhere), "dtype": "float32", "revision": None}}
    (tmp_path / "export.json").write_text(json.dumps(facts))
    with refused(tmp_path / "export.json", elsewhere, "base="):
        load_pipeline(tmp_path)
    with refused("base=", tmp_path / "none"):
        load_pipeline(tmp_path, base=str(tmp_path / "none"))
