"""Trackers get the config once and every iteration once, whatever interrupts the run."""

import importlib.util
import json
import os
import sys
import types
from importlib.machinery import ModuleSpec

import pytest
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from launched import ranks
from refusals import refused, states

from tdmvid.config import from_dict
from tdmvid.config.run import RunConfig
from tdmvid.train.monitor import METRICS, Monitor, read_metrics
from tdmvid.train.tracker import TRACKED, Tracker, check_tracker
from tdmvid.train.trainer import train

RUNS = "tracked"
RECORDING = f'''
import json, os, pathlib, types
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

class Recording(GeneralTracker):
    """A tracker that keeps its runs in files, behind accelerate's interface."""

    name = "mlflow"
    requires_logging_directory = False
    fails_at = None

    def __init__(self, project, run_name=None, run_id=None):
        super().__init__()
        self.project, self.run_name, self.run_id = project, run_name, run_id

    def start(self):
        folder = pathlib.Path(os.environ["{RUNS}"])
        self.run_id = self.run_id or f"run{{len(list(folder.glob('*')))}}"
        if self.run_id == "gone":
            raise ConnectionError("no such run")
        self.file = (folder / self.run_id).open("a")

    @property
    def tracker(self):
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=self.run_id))

    def store_init_configuration(self, values):
        self._write("config", values)

    def log(self, values, step=None, **kwargs):
        if step == self.fails_at:
            raise ConnectionError("no route")
        self._write(step, values)

    def finish(self):
        self._write("end", {{}})

    def _write(self, what, values):
        self.file.write(json.dumps([what, values]) + "\\n")
        self.file.flush()

LOGGER_TYPE_TO_CLASS["mlflow"] = Recording
'''


@pytest.fixture
def recording(monkeypatch, tmp_path):
    """The class of a tracker that stands for mlflow's, and a package of that name."""
    folder = tmp_path / RUNS
    folder.mkdir()
    monkeypatch.setenv(RUNS, str(folder))
    (tmp_path / "packages" / "mlflow").mkdir(parents=True)
    (tmp_path / "packages" / "mlflow" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)  # of ranks
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", GeneralTracker)
    names = {}
    exec(RECORDING, names)
    yield names["Recording"]
    PartialState._reset_state()


def tracked(folder):
    """The runs in a folder, each as what it was sent in turn."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / RUNS).iterdir())
    ]


def config(out, **settings):
    log = {"tracker": "mlflow"}
    return from_dict(RunConfig, {"name": "mine", "out": str(out), "log": log} | settings)


def log(out, start, stop, *, resumed=False):
    """Iterations as the training loop logs them."""
    out.mkdir(exist_ok=True)
    tracker = Tracker(config(out), start=start, resumed=resumed)
    monitor = Monitor(out, total=10, start=start, tracker=tracker)
    for step in range(start, stop):
        monitor.log(step, {"loss/student": step / 7})
    monitor.close()


def sent(run):
    return [(what, values["loss/student"]) for what, values in run if isinstance(what, int)]


def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_iteration_once(
    recording, tmp_path
):
    log(tmp_path / "out", 0, 7)  # dies at 7, its last checkpoint is from 4
    log(tmp_path / "out", 4, 10, resumed=True)
    (run,) = tracked(tmp_path)
    assert sent(run) == [(step, step / 7) for step in range(10)]
    (settings,) = (values for what, values in run if what == "config")
    assert settings["name"] == "mine" and settings["objective.cfg"] == RunConfig().objective.cfg
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    assert run[-1][0] == "end"


def test_a_run_that_starts_anew_is_a_new_one(recording, tmp_path):
    log(tmp_path / "out", 0, 3)
    (tmp_path / "out" / METRICS).unlink()
    log(tmp_path / "out", 0, 2)
    first, second = tracked(tmp_path)
    assert len(sent(first)) == 3 and len(sent(second)) == 2
    assert json.loads((tmp_path / "out" / TRACKED).read_text())["id"] == "run1"


def test_a_tracker_chosen_at_a_resume_gets_what_follows(recording, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / METRICS).write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n')
    log(tmp_path / "out", 2, 4, resumed=True)
    (run,) = tracked(tmp_path)
    assert [step for step, _ in sent(run)] == [2, 3]


def test_an_error_of_the_tracker_ends_no_run_and_a_resume_sends_what_it_lacks(
    recording, tmp_path, capsys
):
    recording.fails_at = 2
    log(tmp_path / "out", 0, 6)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert states(said, "log.tracker='mlflow'") and states(said, 2) and states(said, "no route")
    assert read_metrics(tmp_path / "out" / METRICS)["step"] == list(range(6))
    recording.fails_at = None
    log(tmp_path / "out", 1, 6, resumed=True)
    (run,) = tracked(tmp_path)
    assert [step for step, _ in sent(run)] == list(range(6))


def test_a_tracker_that_does_not_start_is_named(recording, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / TRACKED).write_text('{"tracker": "mlflow", "id": "gone"}')
    with refused("log.tracker='mlflow'", "no such run", out / TRACKED):
        Tracker(config(out), resumed=True)
    assert tracked(tmp_path) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with refused(f"log.tracker='{name}'", f"pip install {name}"):
        check_tracker(name)
    check_tracker("none")


def test_a_tracker_without_an_account_is_refused(monkeypatch):
    def login():
        raise PermissionError("no key")

    stub = types.ModuleType("wandb")
    stub.login, stub.__spec__ = login, ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with refused("log.tracker='wandb'", "no key", "WANDB_API_KEY", "WANDB_MODE=offline"):
        check_tracker("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker("wandb")


def test_an_unknown_tracker_is_refused(tmp_path):
    with refused("log.tracker='tensorbord'", "'wandb'", "'mlflow'", "'none'"):
        config(tmp_path, log={"tracker": "tensorbord"})


def test_training_sends_what_its_record_has(recording, tiny_run, tmp_path, loop_only):
    changes = ("log.tracker=mlflow", "log.checkpoint_every=1")
    train(tiny_run(tmp_path / "out", "steps=2", *changes))
    train(tiny_run(tmp_path / "out", "steps=3", *changes), resume="auto")
    (run,) = tracked(tmp_path)
    metrics = read_metrics(tmp_path / "out" / METRICS)
    assert sent(run) == list(zip(metrics["step"], metrics["loss/student"], strict=True))


@pytest.mark.slow
def test_of_two_ranks_one_sends(recording, tiny_json, tmp_path):
    script = f"{RECORDING}\nfrom tdmvid.cli.main import main\nimport sys\n" + (
        "main(['train', *sys.argv[2:], '--set', 'log.tracker=mlflow', '--set', 'steps=2'])"
    )
    status, said = ranks(tiny_json, tmp_path / "out", script=script, folder=tmp_path)
    assert status == 0, said
    (run,) = tracked(tmp_path)
    assert [step for step, _ in sent(run)] == [0, 1]


def test_mlflow_keeps_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    log(tmp_path / "out", 0, 3)
    log(tmp_path / "out", 2, 5, resumed=True)
    (found,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss/student")
    assert sorted((one.step, one.value) for one in history) == [(s, s / 7) for s in range(5)]
    assert found.data.params["name"] == "mine"
    PartialState._reset_state()


def test_wandb_keeps_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "out"
    out.mkdir()
    settings = config(out, log={"tracker": "wandb"})
    for resumed in (False, True):
        tracker = Tracker(settings, resumed=resumed)
        tracker.log(int(resumed), {"loss/student": 0.5})
        run = tracker._tracker.tracker
        tracker.close()
    assert json.loads((out / TRACKED).read_text()) == {"tracker": "wandb", "id": run.id}
    assert len(list((out / "wandb").glob(f"offline-run-*-{run.id}"))) == 2
    PartialState._reset_state()
