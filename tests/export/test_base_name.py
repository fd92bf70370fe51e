"""A card names the base of a student without folders of the machine that trained it."""

import pytest
from refusals import refused

from tdmvid.config.resources import find_model
from tdmvid.export.base_name import name_base
from tdmvid.export.request import ExportRequest

SNAPSHOT = "/data/hub/models--owner--a--b/snapshots/0123abcd"


def test_a_stated_id_is_one_of_the_hub_also_if_a_folder_has_its_name(tmp_path, monkeypatch):
    """`hf download OWNER/NAME --local-dir OWNER/NAME` makes such a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "base").mkdir(parents=True)
    assert name_base({"path": "owner/base"}).hub == ""
    assert name_base({"path": "owner/base", "on_hub": True}).hub == "owner/base"


@pytest.mark.parametrize(
    "path, title, code, hub, revision",
    [
        ("owner/name", "owner/name", '"owner/name"', "owner/name", "main"),
        ("/home/ann/models/Base-2b/", "Base-2b", '"path/to/Base-2b"', "", "main"),
        ("./Base", "Base", '"path/to/Base"', "", "main"),
        (SNAPSHOT, "owner/a--b", '"owner/a--b"', "owner/a--b", "0123abcd"),
        ("shapes", "shapes", 'find_model("shapes")', "", "main"),
    ],
)
def test_a_base_is_named_by_its_hub_id_or_the_name_of_its_folder(path, title, code, hub, revision):
    base = name_base({"path": path, "revision": "main"})
    assert (base.title, base.code, base.hub, base.revision) == (title, code, hub, revision)


def test_a_folder_called_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert name_base({"path": "owner/name"}).code == '"path/to/name"'


def test_the_code_of_an_embedded_teacher_runs():
    base, scope = name_base({"path": "shapes"}), {}
    exec("\n".join([*base.imports, f"found = {base.code}"]), scope)
    assert scope["found"] == find_model("shapes")


@pytest.mark.parametrize("name", ["CogVideoX-2b", "/models/base", "a/b/c", "owner/"])
def test_a_stated_hub_base_is_an_id_of_the_hub(name):
    with refused("hub-base", name, "OWNER/NAME"):
        ExportRequest(hub_base=name)
