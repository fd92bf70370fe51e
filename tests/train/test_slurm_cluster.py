"""Jobs on a real SLURM cluster of two nodes, submitted as users do; see `slurm_cluster`."""

import contextlib
import json

import pytest
from slurm_cluster import LAUNCH, Cluster, missing, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"no SLURM cluster: {missing()}"),
]
FOREVER = 5000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Run:
    """A run on the cluster. Its settings may change while it waits in the queue."""

    def __init__(self, cluster, tiny_json, folder):
        self.cluster, self.out, self.config = cluster, folder / "run", folder / "run.json"
        self._settings = json.loads(tiny_json.read_text())
        self.set()

    def set(self, **changes) -> None:
        self._settings |= changes
        self.config.write_text(json.dumps(self._settings | {"parallel": {"timeout_minutes": 1}}))

    def set_logging(self, **changes) -> None:
        self.set(log=self._settings["log"] | changes)

    def submit(self, batch: str, *slurm: str, options: tuple[str, ...] = ()) -> int:
        options = options or ("--out", str(self.out))
        return self.cluster.submit(
            "--gpus-per-node=1", *slurm, LAUNCH / batch, self.config, *options
        )

    def rows(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def wait_for_rows(self, number: int | str, count: int) -> None:
        def reached() -> bool:
            state = self.cluster.job(number)["JobState"]
            assert state in ("PENDING", "RUNNING", "COMPLETING"), self.cluster.log(number)
            return len(self.rows()) >= count

        wait_until(reached, 120, f"{count} iterations")

    def has_step(self, number: int | str) -> bool:
        job = self.cluster.job(number)["JobId"]
        with contextlib.suppress(RuntimeError):  # "not found"
            return "StepId=" in self.cluster.call("scontrol", "show", "step", f"{job}.0")
        return False

    def completed(self, number: int | str) -> str:
        """Wait for the end of a job and return its log."""
        ended = self.cluster.wait_for(number, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
        log = self.cluster.log(number)
        print(log)
        assert ended["JobState"] == "COMPLETED"
        assert "usage" not in log and "deprecated" not in log
        return log


@pytest.fixture
def run(cluster, tiny_json, tmp_path):
    yield Run(cluster, tiny_json, tmp_path)
    cluster.end_jobs()


def test_a_job_of_two_nodes_outlives_its_limit_and_a_node_that_dies(run):
    """The `--signal=USR1@900` of the batch file is used; the time limit is moved towards the
    job.
    """
    run.set(steps=FOREVER)
    number = run.submit("nodes.sbatch", "--nodes=2")
    run.wait_for_rows(number, 1)
    step = run.cluster.call("scontrol", "--oneliner", "show", "step", f"{number}.0")
    assert " CPUs=128 " in step and " Tasks=2 " in step
    run.cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=10")
    record = run.cluster.wait_for(number, "PENDING")
    run.cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    stopped = len(run.rows())
    assert record["Restarts"] == "1" and 1 <= stopped < FOREVER
    assert (run.out / "checkpoints" / f"step_{stopped:06d}").is_dir()

    run.set_logging(checkpoint_every=1)
    run.wait_for_rows(number, stopped + 2)
    run.cluster.kill_node("n2")
    record = run.cluster.wait_for(number, "PENDING", "COMPLETED", "FAILED", "NODE_FAIL")
    died = len(run.rows())
    assert record["JobState"] == "PENDING" and record["Restarts"] == "2" and died > stopped

    run.set(steps=died + 2)
    run.cluster.start_node("n2")
    log = run.completed(number)
    assert [row["step"] for row in run.rows()] == list(range(died + 2))
    assert f"stopped as requested after {stopped} of" in log and (run.out / "lora").is_dir()


def test_of_an_array_one_task_ends_and_the_last_is_stopped_queued_again_and_cancelled(run):
    """Each task runs on one node and uses its number as seed and steps. The last task's job has the
    number of the whole array.
    """
    options = ("--set", "seed=%a", "--set", "steps=%a", "--out", str(run.out.with_name("run_%a")))
    number = run.submit("one_node.sbatch", "--array=2,1000", options=options)
    first, last = f"{number}_2", f"{number}_1000"
    wait_until(lambda: run.has_step(last), 30, "the last task starts its node")
    run.cluster.call("scancel", "--signal=USR1", last)
    run.out = run.out.with_name("run_1000")
    run.wait_for_rows(last, 1)
    run.cluster.call("scancel", last)
    cancelled = run.cluster.wait_for(last, "CANCELLED", "PENDING", "FAILED", "COMPLETED")
    assert cancelled["JobState"] == "CANCELLED" and cancelled["Restarts"] == "1"
    assert (run.out / "checkpoints" / f"step_{len(run.rows()):06d}").is_dir()

    run.completed(first)
    assert run.cluster.job(first)["Restarts"] == "0"
    run.out = run.out.with_name("run_2")
    assert len(run.rows()) == 2 and (run.out / "lora").is_dir()


def test_an_array_whose_tasks_would_share_a_directory_is_refused_and_failures_end_the_job(run):
    array = run.submit("one_node.sbatch", "--array=0")
    number = run.submit("one_node.sbatch", options=("--set", "stepz=1"))
    for job, said in ((array, "seed=%a"), (number, "stepz")):
        record = run.cluster.wait_for(job, "FAILED", "COMPLETED", seconds=60)
        assert record["JobState"] == "FAILED" and record["Restarts"] == "0"
        assert said in run.cluster.log(job)


@pytest.mark.parametrize(
    "batch, slurm, count",
    [
        ("one_node.sbatch", ("--gres=gpu:4",), 4),
        ("one_node.sbatch", ("--gpus-per-node=3",), 3),
        ("nodes.sbatch", ("--nodes=2", "--gres=gpu:2"), 2),
    ],
)
def test_a_node_starts_a_rank_on_each_gpu_of_the_job(run, tmp_path, batch, slurm, count):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "ranks:" "$@"\n')
    python.chmod(0o755)
    number = run.cluster.submit(*slurm, f"--export=ALL,PYTHON={python}", LAUNCH / batch, run.config)
    log = run.completed(number)
    assert log.count(f"--nproc_per_node {count}") == (2 if "--nodes=2" in slurm else 1)
