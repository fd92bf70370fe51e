"""Check from the source which package may import which."""

import ast
import re
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tdmvid"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Which other folders of this package each folder may import, lowest layer first.
_MODELS = {"config", "diffusion", "data", "backbones", "adapters"}
_STUDENTS = _MODELS | {"distill", "parallel", "sampling", "guard"}
_RUNS = _STUDENTS | {"roles", "export", "plan", "scoring", "shapes"}
MAY_IMPORT = {
    "config": set(),
    "diffusion": set(),
    "distill": {"config", "diffusion"},
    "parallel": {"config", "diffusion"},
    "data": {"config", "diffusion"},
    "guard": {"config", "data"},
    "backbones": {"config", "diffusion", "data"},
    "adapters": _MODELS,
    "sampling": _MODELS | {"distill", "parallel"},
    "roles": _STUDENTS,
    "export": _STUDENTS | {"roles"},
    "plan": _STUDENTS | {"roles"},
    "scoring": _STUDENTS | {"roles", "export", "plan"},
    "shapes": _STUDENTS | {"scoring"},
    "rewards": _RUNS,
    "report": _RUNS | {"train"},
    "train": _RUNS | {"report", "rewards"},
    "cli": _RUNS | {"report", "train", "rewards"},
}


# Which folders may import third-party packages.
WHO_MAY_IMPORT = {
    "torch": set(MAY_IMPORT) - {"config", "cli"},  # cli imports it when a command runs
    "torch.distributed": {"parallel"},
    "deepspeed": {"parallel"},
    "transformers": {"backbones", "rewards"},
    "diffusers": {"backbones", "adapters", "sampling", "export"},
    "peft": {"backbones", "adapters", "export"},
    "gradio": {"sampling"},
}
NEVER_IMPORTED = {"launch", "eval", "ablations", "benchmarks", "examples", "tests"}


def imports(path: Path) -> set[str]:
    """Return the absolute dotted names that a file imports anywhere, including TYPE_CHECKING
    blocks.
    """
    found = set()
    package = (path.parent.relative_to(ROOT)).parts
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names}
    return found


def layer(path: Path) -> str:
    """Return the folder below the package, or "" for a file at its top."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_what_is_installed_is_every_folder_of_the_package_with_its_data():
    """Without an __init__.py at the top, setuptools finds no package and silently installs
    nothing.
    """
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in MODULES}
    assert (
        folders
        == set(find_packages(str(ROOT), include=["tdmvid", "tdmvid.*"]))
        >= {"tdmvid", "tdmvid.distill"}
    )
    for suffix in ("*.j2", "*.json"):
        for path in PACKAGE.rglob(suffix):
            owner = path.relative_to(PACKAGE).parts[0]
            text = (ROOT / "setup.py").read_text()
            patterns = re.search(rf'"tdmvid\.{owner}": \[(.*?)\]', text, re.S)
            assert patterns and suffix in patterns[1], path


def test_the_walk_sees_the_package():
    assert len(MODULES) > 15
    assert "tdmvid.diffusion.process.Process" in imports(PACKAGE / "distill" / "tdm.py")


def test_every_folder_has_its_place_in_the_table():
    assert {layer(path) for path in MODULES} - {""} == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_layer_may(path):
    where, names = layer(path), imports(path)
    roots = {name.split(".")[0] for name in names}
    inner = {name.split(".")[1] for name in names if name.startswith("tdmvid.")} - {where}
    assert not roots & NEVER_IMPORTED
    if where:
        assert inner <= MAY_IMPORT[where]
    for package, folders in WHO_MAY_IMPORT.items():
        used = any(f"{name}.".startswith(f"{package}.") for name in names)
        assert not used or where in folders, package
    if where in ("config", "diffusion", "distill"):
        assert roots <= {"torch", "tdmvid", *sys.stdlib_module_names}


def test_every_program_expands_the_home_folder_in_its_paths():
    """A shell leaves `~` in `--out=~/runs` as it is; `Parser` does not."""
    programs = [
        path for name in ("benchmarks", "eval", "examples") for path in (ROOT / name).rglob("*.py")
    ]
    programs = [path for path in programs if "add_argument(" in path.read_text()]
    assert len(programs) > 20
    assert not [path for path in programs if "ArgumentParser(" in path.read_text()]
