"""The installed wheel can do what a user does first, in another folder and without the clone.

It is installed into a separate environment that uses the dependencies of this one, so that nothing
is downloaded.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = (".*", "runs", "cache", "build", "site", "*.egg-info", "__pycache__")
READ_ALL = """
from tdmvid.backbones.registry import find_family
from tdmvid.config import load_config
from tdmvid.config.resources import CONFIGS
from tdmvid.data.prompts import read_prompts
for path in sorted(CONFIGS.glob("*.json")):
    config = load_config(path.name.removesuffix(".json"))
    folder, family = find_family(config.model, weights=False)
    print("ready", config.name, family.__name__, len(read_prompts(config.prompts.path)))
"""
PLAN_ALL = """
from tdmvid.cli.main import main
from tdmvid.config.resources import CONFIGS
from tdmvid.plan import make
def once(count):
    first = []
    def counted(networks):
        first or first.append(count(networks))
        return first[0]
    return counted
make.count_calls, make.count_pipeline = once(make.count_calls), once(make.count_pipeline)
for path in sorted(CONFIGS.glob("*.json"), key=lambda path: path.name != "shapes_4nfe.json"):
    main(["plan", "--ranks", "8", "--config", path.name.removesuffix(".json")])
"""

pytestmark = pytest.mark.slow


class Installed:
    """A clean environment with the wheel, and a working folder."""

    def __init__(self, folder: Path):
        self.folder, self.environment = folder / "work", folder / "venv"
        self.folder.mkdir()
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        self.variables = {k: v for k, v in os.environ.items() if k not in hidden}
        self.variables |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

    def __call__(self, program: str, *words: str, status: int = 0) -> str:
        """Run a program of the environment and return its output."""
        done = subprocess.run(
            [str(self.environment / "bin" / program), *words],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, because a build leaves files next to them."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, str(folder), str(source)], check=True
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel where no clone can be found."""
    installed = Installed(tmp_path_factory.mktemp("elsewhere"))
    venv = [sys.executable, "-m", "venv", "--without-pip", str(installed.environment)]
    subprocess.run(venv, check=True)
    python = installed.environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True)
    own = Path(installed("python", "-c", "import site; print(site.getsitepackages()[0])").strip())
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


@pytest.fixture(scope="module")
def run(installed):
    """Two iterations of the demo."""
    words = ["batch.micro=2", "steps=2", "prompts.limit=8", "log.teacher_steps=2"]
    words.append('log.sample_prompts=["a red ring moving left"]')
    overrides = [word for setting in words for word in ("--set", setting)]
    installed("tdmvid", "train", "--config", "shapes_4nfe", "--out", "run", *overrides)
    return installed.folder / "run"


def test_the_package_is_the_installed_one(installed):
    """It includes type hints and licence."""
    code = "import tdmvid; print(tdmvid.__path__[0])"
    package = Path(installed("python", "-c", code).strip())
    assert installed.environment in package.parents
    assert (package / "py.typed").is_file()
    assert len(list((package / "configs" / "evaluation").glob("*.json"))) == len(
        list((ROOT / "eval/configs").glob("*.json"))
    )
    assert list(package.parent.glob("tdmvid-*.dist-info/licenses/LICENSE"))


def test_every_ready_config_is_found_with_its_teachers_configs_and_its_prompts(installed):
    printed = installed("python", "-c", READ_ALL)
    assert printed.count("ready ") == len(list((ROOT / "configs").glob("*.json")))


def test_every_ready_config_is_planned_by_its_name_and_says_what_vbench_lacks(installed):
    """All configs are planned in one process from the files in the package. The cost of network
    calls is only counted for the first config, because it depends on no further file; tests/plan
    counts all.
    """
    printed = installed("python", "-c", PLAN_ALL).splitlines()
    configs = [json.loads(path.read_text()) for path in (ROOT / "configs").glob("*.json")]
    assert sum(line.startswith("output folder ") for line in printed) == len(configs)
    evaluated = [line for line in printed if line.startswith("evaluation ")]
    assert len(evaluated) == sum("evaluate" in config for config in configs)
    for line in evaluated:
        command = shlex.split(re.search(r"`([^`]+)`", line)[1])
        assert command[0] == "bash" and command[2] == ".venv-vbench"
        script = installed.folder / command[1]
        assert script.name == "setup_vbench.sh"
        for name in ("vbench_requirements.txt", "vbench_constraints.txt"):
            assert name in script.read_text() and script.with_name(name).is_file()


def test_the_setup_of_vbench_refuses_a_python_without_its_wheels(installed):
    """As far as possible without network access."""
    (script,) = installed.environment.glob("lib/*/site-packages/tdmvid/**/setup_vbench.sh")
    done = subprocess.run(
        ["bash", script], env=installed.variables | {"PYTHON": "false"}, capture_output=True
    )
    assert done.returncode == 1 and b"PYTHON" in done.stderr


def test_the_demo_trains_and_writes_a_checked_lora_and_a_report(run):
    assert json.loads((run / "lora" / "export.json").read_text())["error"] < 5e-2
    assert (run / "report.html").is_file()


def test_the_student_makes_the_videos_of_a_ready_list_and_of_a_file(installed, run):
    prompts = installed.folder / "mine.txt"
    prompts.write_text("a red ring moving left\n")
    words = ["--lora", "run/lora", "--prompts", str(prompts), "--out", "videos"]
    installed("tdmvid", "sample", *words)
    assert len(list((installed.folder / "videos").glob("*.mp4"))) == 1


def test_the_run_is_exported_again(installed, run):
    installed("tdmvid", "export", "--run", "run", "--out", "bundle")
    assert (installed.folder / "bundle" / "pytorch_lora_weights.safetensors").is_file()


def test_vbench_worker_starts(installed):
    """It runs in VBench's own environment. In any other, it fails when importing the package."""
    code = "from tdmvid.scoring.vbench_runner import WORKER; print(WORKER)"
    worker = installed("python", "-c", code).strip()
    request = {"cache": "cache", "out": "out", "entries": [], "dimensions": [], "long": False}
    (installed.folder / "request.json").write_text(json.dumps(request))
    assert "'vbench'" in installed("python", worker, "request.json", status=1)


def test_the_slurm_scripts_are_there_and_start_the_installed_command(installed):
    code = "import tdmvid; print(tdmvid.__path__[0])"
    folder = Path(installed("python", "-c", code).strip()) / "slurm"
    assert {path.name for path in folder.glob("*.sbatch")} == {"nodes.sbatch", "one_node.sbatch"}
    assert "-m tdmvid train" in (folder / "node.sh").read_text()
