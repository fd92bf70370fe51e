"""The version ranges in setup.py are tested: the constraint files hold both ends of each range."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]


def constraints(name):
    """Return the pinned versions of a constraints file, by normalised project name."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / name).read_text(), re.M)
    return {project.lower().replace("_", "-"): Version(version) for project, version in pins}


@pytest.fixture(scope="module")
def requirements():
    """Return the requirements of the package and of its tests, by normalised project name."""
    code = (
        "import setuptools, sys\n"
        "setuptools.setup = lambda **k: print(*k['install_requires'],"
        " *k['extras_require']['test'], sep='\\n')\n"
        "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), {'__file__': 'setup.py'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = [Requirement(line) for line in done.stdout.splitlines()]
    return {one.name.lower(): one for one in listed}


def test_the_lowest_versions_are_the_lower_bounds(requirements):
    lowest = constraints("constraints-lowest.txt")
    assert lowest.keys() == requirements.keys()
    for name, requirement in requirements.items():
        (bound,) = (Version(one.version) for one in requirement.specifier if one.operator == ">=")
        assert lowest[name] == bound, name


def test_the_newest_tested_versions_are_allowed(requirements):
    newest = constraints("constraints.txt")
    for name, requirement in requirements.items():
        assert newest[name] in requirement.specifier, name
