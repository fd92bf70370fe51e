"""Uploads of checked bundles to a hub on the loopback."""

import json

import huggingface_hub.constants
import pytest
from hub_server import Repository, serve
from refusals import refused

from tdmvid.cli.main import main
from tdmvid.export.push import HubTarget, check_target, upload

CONTENT = {
    "README.md": b"---\nlibrary_name: diffusers\n---\n# a student",
    "pytorch_lora_weights.safetensors": b"weights " * 100,
    "samples/0.mp4": b"video",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that the client takes for the real one, with the client's token "mine"."""
    constants = huggingface_hub.constants
    with serve({}) as there:
        there.tokens = {"mine": "write", "reader": "read"}
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", there.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", there.address + template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "mine")
        yield there


def bundle(folder, files=CONTENT, **facts):
    """A folder as an export leaves it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    known = {"error": 1e-6, "tolerance": 1e-5, "files": sorted(files)} | facts
    (folder / "export.json").write_text(json.dumps(known))
    return folder


@pytest.mark.parametrize("public", [False, True])
def test_a_checked_bundle_is_uploaded_whole_in_one_commit(hub, tmp_path, public):
    folder = bundle(tmp_path / "out")
    (folder / "notes.txt").write_text("not of the bundle")
    target = HubTarget("owner/name", public)
    check_target(target)
    assert not hub.repositories, "the check creates nothing"
    assert upload(folder, target) == f"{hub.address}/owner/name"
    there = hub.repositories["owner/name"]
    assert there.private is not public
    assert there.files == CONTENT | {"export.json": (folder / "export.json").read_bytes()}
    assert there.commits == [set(there.files)]
    assert list(hub.stored.values()) == [CONTENT["pytorch_lora_weights.safetensors"]]


def test_a_second_upload_removes_what_only_the_first_had_and_nothing_else(hub, tmp_path):
    target = HubTarget("owner/name")
    upload(bundle(tmp_path / "first"), target)
    there = hub.repositories["owner/name"]
    there.files["LICENSE"] = b"of the owner"
    fused = {"README.md": b"# fused", "diffusion_pytorch_model.safetensors": b"whole"}
    upload(bundle(tmp_path / "second", fused), target)
    assert there.files.keys() == {*fused, "export.json", "LICENSE"}
    assert there.files["README.md"] == fused["README.md"]


@pytest.mark.parametrize(
    "facts, stated",
    [
        ({"error": 2e-5}, ["tolerance=1.0e-05"]),
        ({"errors": {"comfyui": 0.5}}, ["tolerance=1.0e-05"]),
        ({"error": float("nan")}, ["tolerance=1.0e-05"]),
    ],
)
def test_nothing_is_uploaded_unless_the_check_passed(hub, tmp_path, facts, stated):
    with refused(tmp_path / "out", "tdmvid export", *stated):
        upload(bundle(tmp_path / "out", **facts), HubTarget("owner/name"))
    assert not hub.repositories


def test_an_incomplete_bundle_is_not_uploaded(hub, tmp_path):
    folder = bundle(tmp_path / "out")
    (folder / "samples" / "0.mp4").unlink()
    with refused(folder, "'samples/0.mp4'", "tdmvid export"):
        upload(folder, HubTarget("owner/name"))
    with refused(tmp_path, "tdmvid export"):
        upload(tmp_path, HubTarget("owner/name"))
    assert not hub.repositories


@pytest.mark.parametrize("name", ["name", "owner/", "/name", "a/b/c", "owner/na me", "", "o/n.git"])
def test_a_name_that_the_hub_does_not_take_is_refused(hub, name):
    with refused(f"push={name!r}"):
        check_target(HubTarget(name))


@pytest.mark.parametrize(
    "token, facts",
    [
        (None, ["hf auth login", "HF_TOKEN"]),
        ("wrong", ["401", "hf auth login"]),
        ("reader", ["write access"]),
    ],
)
def test_a_token_that_cannot_upload_is_refused_before_the_export(hub, monkeypatch, token, facts):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with refused("push='owner/name'", *facts):
        check_target(HubTarget("owner/name"))


def test_another_owner_s_repository_is_refused_and_the_bundle_stays(hub, tmp_path):
    folder, target = bundle(tmp_path / "out"), HubTarget("other/name")
    check_target(target)
    with refused("push='other/name'", "'other'", "403", f"hf upload other/name {folder}"):
        upload(folder, target)
    assert not hub.repositories and (folder / "README.md").is_file()
    spaced = bundle(tmp_path / "my out")
    with refused(f"`hf upload other/name '{spaced}' . --private`"):
        upload(spaced, target)


@pytest.mark.parametrize(
    "private, facts", [(False, ["public", "--public"]), (True, ["private", "--public"])]
)
def test_a_repository_of_another_visibility_is_refused_and_left_alone(
    hub, tmp_path, private, facts
):
    hub.repositories["owner/name"] = Repository({"x": b"y"}, private=private)
    target = HubTarget("owner/name", public=private)
    with refused("push='owner/name'", *facts):
        check_target(target)
    with refused("push='owner/name'", *facts):
        upload(bundle(tmp_path / "out"), target)
    assert hub.repositories["owner/name"].files == {"x": b"y"}


def test_a_hub_that_cannot_be_reached_is_said_so(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with refused("push='owner/name'", "network"):
        check_target(HubTarget("owner/name"))


def test_a_run_s_export_is_uploaded_and_one_that_fails_its_check_is_not(hub, run, tmp_path, capsys):
    words = ["export", "--run", str(run), "--prompt", "a red circle", "--push", "owner/name"]
    out = tmp_path / "out"
    with refused("error", "tolerance", error=SystemExit):
        main([*words, "--tolerance", "1e-30", "--out", str(tmp_path / "never")])
    assert not hub.repositories
    main([*words, "--out", str(out)])
    there = hub.repositories["owner/name"]
    on_disk = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file()
    }
    assert there.private and there.files == on_disk and "README.md" in on_disk
    assert f"{hub.address}/owner/name (private)" in capsys.readouterr().out
