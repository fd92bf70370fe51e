"""The cluster's command on this machine: two nodes with one rank each, stopped by a signal and
queued again.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from refusals import states
from slurm_cluster import missing
from vbench_stand_in import write_stand_in

SLURM = Path(__file__).resolve().parents[2] / "launch" / "slurm"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_nodes(tiny_json, out, *changes: str) -> list[subprocess.Popen]:
    """Start two nodes with node.sh, from another folder."""
    environment = os.environ | {
        "HEAD": "127.0.0.1",
        "PORT": str(free_port()),
        "NODES": "2",
        "GPUS": "1",
        "JOB": "test",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
    }
    options = [
        part for change in ("parallel.timeout_minutes=1", *changes) for part in ("--set", change)
    ]
    command = [
        str(SLURM / "node.sh"),
        "--config",
        str(tiny_json),
        "--out",
        str(out),
        "--resume",
        "auto",
        *options,
    ]
    return [
        subprocess.Popen(
            command,
            cwd=out.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(2)
    ]


def children(process: int) -> list[int]:
    """Return the process IDs of a process's children, oldest first."""
    return sorted(
        int(child)
        for task in Path(f"/proc/{process}/task").iterdir()
        for child in (task / "children").read_text().split()
    )


def wait(nodes: list[subprocess.Popen], seconds: float = 400) -> list[int]:
    """Return exit statuses. torchrun's agents may wait 300 seconds for each other on exit."""
    try:
        said = [node.communicate(timeout=seconds)[0] for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    print(*said, sep="\n")
    return [node.returncode for node in nodes]


def write_evaluation(folder: Path) -> str:
    """Write an evaluation that uses a fake VBench, and return the setting that selects it."""
    (folder / "scored.txt").write_text("a red circle\na blue square")
    settings = {
        "prompts": str(folder / "scored.txt"),
        "video": {"frames": 9, "height": 32, "width": 32},
        "dimensions": ["temporal_flickering"],
        "teacher": {"steps": 2, "cfg": 2.0},
        "seeds": 2,
        "embeddings": str(folder / "embeddings"),
        "environment": str(write_stand_in(folder / "env")),
    }
    (folder / "v.json").write_text(json.dumps(settings))
    return "evaluate=" + json.dumps({"program": "vbench", "config": str(folder / "v.json")})


def rows(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out: Path) -> list[tuple[float, float]]:
    return [(row["loss/student"], row["loss/fake"]) for row in rows(out)]


def job(
    tmp_path, batch: str, status: int, comment: str = "", given_up: bool = False, **options
) -> str:
    """Run an sbatch file with fake srun, which exits with a given status, and scontrol.

    Returns:
        The call of srun after HEAD and the number of GPUs that it would ask for, and in further
        lines what scontrol was asked to change.
    """
    done = start_job(tmp_path, batch, status, comment, **options)
    assert done.returncode == (1 if given_up else status), done.stderr
    return (tmp_path / "said").read_text()


def start_job(
    tmp_path,
    batch: str,
    status: int = 0,
    comment: str = "",
    config="a.json",
    place: Path = SLURM,
    options: Sequence[str] = (),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run an sbatch file of the folder `place`. `options` are those of `tdmvid train`."""
    said = tmp_path / "said"
    for name, script in {
        "srun": f'echo "$HEAD" "${{SLURM_GPUS_PER_NODE-}}" "$@" > {said}; exit {status}',
        "scontrol": f"""case "$*" in
            "show hostnames "*) echo node1;;
            *"show job "*) echo "JobId=12 Comment={comment} x=1"
                           echo "   Command={place / batch} a.json";;
            *"show node "*) echo "NodeName=node1 NodeAddr=10.0.0.1 Port=1";;
            *) echo "$@" >> {said};;
        esac""",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    there = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_GPUS_PER_NODE": "8",  # of the sbatch file, also beside --gres=gpu:4
    }
    copy = shutil.copy(SLURM / batch, tmp_path / "slurm_script")  # like Slurm
    return subprocess.run(
        ["bash", str(copy), config, *options],
        cwd=tmp_path,
        env=there | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not missing(), reason="the same jobs run on a real cluster")
@pytest.mark.parametrize("batch", ["one_node.sbatch", "nodes.sbatch"])
@pytest.mark.parametrize("status, queued", [(0, False), (75, True), (1, False)])
def test_the_job_gives_its_task_all_cpus_waits_for_the_last_and_is_queued_again_if_it_stopped(
    tmp_path, batch, status, queued
):
    """By default srun binds all ranks of a node to one core (Slurm 22.05) and may kill the rest
    when the first node ends. It takes the GPUs of the job, however they were asked for.
    """
    [started, *asked] = job(tmp_path, batch, status).splitlines()
    assert (
        started.startswith("10.0.0.1  --")  # node1 cannot be resolved; no number of GPUs
        and "--cpus-per-task=64" in started
        and "--wait=0" in started
        and started.endswith(f"{SLURM / 'node.sh'} --config a.json --resume auto")
    )
    assert ("requeue 12" in asked) == queued


@pytest.mark.parametrize("restarts, last", [("0", "runs/a/checkpoints/step_5"), ("2", "auto")])
def test_a_checkpoint_that_the_user_names_is_for_the_first_start_only(tmp_path, restarts, last):
    """Otherwise every start would go back to it, and delete what the one before has saved."""
    options = ["--resume", "runs/a/checkpoints/step_5"]
    start_job(tmp_path, "one_node.sbatch", options=options, SLURM_RESTART_COUNT=restarts)
    started = (tmp_path / "said").read_text()
    assert "--config a.json --resume auto" in started and started.split()[-1] == last


@pytest.mark.parametrize(
    "comment, queued", [("", 1), ("mine", 1), ("tdmvid:0", 1), ("tdmvid:2", 3), ("tdmvid:3", 0)]
)
@pytest.mark.parametrize("status", [76, 128 + signal.SIGUSR1])
def test_a_job_that_is_always_stopped_before_its_first_iteration_is_not_queued_for_ever(
    tmp_path, comment, queued, status
):
    """This happens if the time limit is shorter than the lead time of the signal. The signal may
    arrive before the task's script starts.
    """
    given_up = queued == 0
    asked = job(tmp_path, "one_node.sbatch", status, comment, given_up=given_up).splitlines()[1:]
    changes = [f"update JobId=12 Comment=tdmvid:{queued}", "requeue 12"]
    assert asked == (changes if queued else [])


@pytest.mark.parametrize("comment", ["", "tdmvid:3"])
@pytest.mark.parametrize("status", [75, 77])
def test_a_job_that_has_saved_something_is_queued_again_however_often(tmp_path, comment, status):
    """For example, videos of an evaluation that takes longer than several jobs."""
    asked = job(tmp_path, "one_node.sbatch", status, comment, given_up=False).splitlines()[1:]
    assert asked == ["update JobId=12 Comment=tdmvid:0", "requeue 12"]


@pytest.mark.parametrize("batch", ["one_node.sbatch", "nodes.sbatch"])
def test_the_scripts_may_be_in_a_folder_with_a_space(tmp_path, batch):
    place = Path(shutil.copytree(SLURM, tmp_path / "my project" / "slurm"))
    [started, *_] = job(tmp_path, batch, 0, place=place).splitlines()
    assert f"{place / 'node.sh'} --config a.json" in started


@pytest.mark.parametrize("batch", ["one_node.sbatch", "nodes.sbatch"])
@pytest.mark.parametrize("found", ["variable", "clone", "package"])
def test_a_copied_sbatch_file_finds_the_other_scripts(tmp_path, batch, found):
    """Users copy it to edit its #SBATCH lines."""
    place, environment = SLURM, {"PYTHON": sys.executable, "PYTHONPATH": str(SLURM.parents[1])}
    if found == "variable":
        environment |= {"PYTHON": "false", "TDMVID_SLURM": str(SLURM)}
    if found == "package":
        place = Path(shutil.copytree(SLURM, tmp_path / "site" / "tdmvid" / "slurm"))
        (place.parent / "__init__.py").touch()
        environment["PYTHONPATH"] = str(tmp_path / "site")
    [started, *_] = job(tmp_path, batch, 0, place=tmp_path / "mine", **environment).splitlines()
    assert f"{place / 'node.sh'} --config a.json" in started


@pytest.mark.parametrize("batch", ["one_node.sbatch", "nodes.sbatch"])
def test_an_sbatch_file_without_the_other_scripts_says_where_it_looked(tmp_path, batch):
    unknown = {"PYTHON": "false", "TDMVID_SLURM": "/nowhere"}
    done = start_job(tmp_path, batch, place=tmp_path / "mine", **unknown)
    facts = (str(tmp_path / "mine" / batch), "TDMVID_SLURM=/nowhere", "PYTHON")
    assert done.returncode == 2 and all(states(done.stderr, fact) for fact in facts)
    assert done.stderr.count("\n") == 1


def test_only_the_stopped_task_of_an_array_is_queued_again(tmp_path):
    """The last task of an array has the job number of the whole array."""
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    [started, *asked] = job(tmp_path, "one_node.sbatch", 75, config="%a.json", **array).splitlines()
    assert "--config 3.json" in started and asked[-1] == "requeue 12_3"


def node(tmp_path, script: str, **environment: str) -> subprocess.Popen[str]:
    """Run launch/slurm/node.sh with a shell script in place of Python."""
    python = tmp_path / "python"
    if not python.exists() or script not in python.read_text():  # another node may be reading it
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [str(SLURM / "node.sh")],
        cwd=tmp_path,
        env=inherited | {"PYTHON": str(python), "GPUS": "4"} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "told, saved, status", [(True, False, 76), (True, True, 77), (False, True, 3)]
)
def test_ranks_that_a_signal_ends_before_or_behind_the_loop_are_queued_again_too(
    tmp_path, told, saved, status
):
    """While prompts are embedded, the student is exported or videos are scored, signals are not
    handled. A failure is still reported as one.
    """
    (tmp_path / "tmp").mkdir()
    save = 'touch "$TDMVID_SAVED";' if saved else ""
    wait = f"sleep {30 if told else 0} & touch {tmp_path}/begun; wait $!; exit 3"
    run = node(tmp_path, f"{save} {wait}", TMPDIR=str(tmp_path / "tmp"))
    while told and not (tmp_path / "begun").exists():
        time.sleep(0.01)
    if told:
        run.send_signal(signal.SIGUSR1)
    assert run.wait(20) == status and not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("helper", ["", "sleep 0.5;"])
def test_a_launcher_without_ranks_is_ended_and_queued_again(tmp_path, helper):
    """It is still importing PyTorch, which may start a helper process, or its ranks have exited."""
    run = node(tmp_path, f": > {tmp_path}/begun; {helper} exec sleep 30")
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    run.send_signal(signal.SIGUSR1)
    said = run.communicate(timeout=20)[1]
    assert run.returncode == 76 and "usage" not in said


def test_a_signal_is_not_lost_while_the_script_starts(tmp_path):
    """Before its first line, the signal ends the script."""
    runs = []
    for delay in range(40):
        runs.append(node(tmp_path, "exec sleep 1"))
        time.sleep(delay / 1000)
        runs[-1].send_signal(signal.SIGUSR1)
    assert {run.wait(20) for run in runs} <= {76, -signal.SIGUSR1}


@pytest.mark.parametrize(
    "cpus, chosen, threads",
    [("64", {}, 16), ("2", {}, 1), ("", {}, 1), ("64", {"OMP_NUM_THREADS": "5"}, 5)],
)
def test_the_ranks_of_a_node_share_its_cpus(tmp_path, cpus, chosen, threads):
    given = {"SLURM_CPUS_PER_TASK": cpus} if cpus else {}
    assert node(tmp_path, f"[ $OMP_NUM_THREADS -eq {threads} ]", **given, **chosen).wait(20) == 0


@pytest.mark.slow
def test_two_nodes_stop_together_when_one_is_told_and_go_on_as_if_nothing_had_been(
    tiny_json, tmp_path
):
    """The run that is not stopped is also scored, by both nodes within the allocation."""
    evaluate = write_evaluation(tmp_path)
    assert wait(start_nodes(tiny_json, tmp_path / "whole", evaluate)) == [0, 0]
    results = json.loads((tmp_path / "whole" / "vbench" / "results.json").read_text())
    assert results["videos_scored"] == {"temporal_flickering": [4, 4]}
    assert "VBench" in (tmp_path / "whole" / "report.html").read_text()
    nodes, out = start_nodes(tiny_json, tmp_path / "run"), tmp_path / "run"
    while not rows(out) and all(node.poll() is None for node in nodes):
        time.sleep(0.01)
    os.killpg(nodes[1].pid, signal.SIGUSR1)  # like SLURM, which also signals the launcher
    assert wait(nodes) == [75, 75]
    assert (
        1 <= len(rows(out)) < 8
        and not (out / "lora").exists()
        and list((out / "checkpoints").glob("step_*"))
    )
    assert wait(start_nodes(tiny_json, out)) == [0, 0]
    assert losses(out) == losses(tmp_path / "whole") and len(rows(out)) == 8
    assert (out / "lora" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.slow
def test_the_launcher_leaves_a_sigterm_to_its_ranks(tiny_json, tmp_path):
    """SLURM sends it to all processes of a node. torchrun would kill its ranks 30 seconds later."""
    nodes, out = start_nodes(tiny_json, tmp_path / "run", "steps=500"), tmp_path / "run"
    while not rows(out) and all(node.poll() is None for node in nodes):
        time.sleep(0.01)
    launchers = [children(node.pid)[0] for node in nodes]
    for launcher in launchers:
        os.kill(launcher, signal.SIGTERM)
    done = len(rows(out))
    while len(rows(out)) < done + 2:  # the launchers alone were told, so the ranks go on
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.01)
    for node in nodes:
        os.killpg(node.pid, signal.SIGTERM)
    assert wait(nodes) == [75, 75] and list((out / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_last_checkpoint_stands(tiny_json, tmp_path):
    out, changes = tmp_path / "run", ("log.checkpoint_every=1", "steps=500")
    nodes = start_nodes(tiny_json, out, *changes)
    while len(rows(out)) < 3 and all(node.poll() is None for node in nodes):
        time.sleep(0.01)
    rank = children(children(nodes[1].pid)[0])[0]
    began = time.time()
    os.kill(rank, signal.SIGKILL)
    assert all(status not in (0, 75) for status in wait(nodes)) and time.time() - began < 120
    done = len(rows(out))
    assert wait(start_nodes(tiny_json, out, "log.checkpoint_every=1", f"steps={done + 2}")) == [
        0,
        0,
    ]
    assert [row["step"] for row in rows(out)] == list(range(done + 2))


def test_a_node_whose_name_cannot_be_resolved_is_found_by_its_address(tmp_path):
    """torchrun would announce the name."""
    said = tmp_path / "said"
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho NodeName=n2 NodeAddr=10.0.0.2 Port=1\n")
    (tmp_path / "scontrol").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    script = f'echo "$@" > {said}'
    for name, announced in (("no-such-node.invalid", True), ("localhost", False)):
        started = node(tmp_path, script, PATH=path, NODES="2", HEAD="h", SLURMD_NODENAME=name)
        assert started.wait(60) == 0
        assert ("--local_addr 10.0.0.2" in said.read_text()) == announced
