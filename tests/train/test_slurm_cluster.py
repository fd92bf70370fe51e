"""Jobs on a real SLURM cluster of two nodes, as users submit them; see `slurm_cluster`."""

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
    """A run on the cluster, whose settings may change while it waits in the queue."""

    def __init__(self, cluster, tiny_json, folder):
        self.cluster, self.out, self.config = cluster, folder / "run", folder / "run.json"
        self._settings = json.loads(tiny_json.read_text())
        self.set()

    def set(self, **changes) -> None:
        self._settings |= changes
        self.config.write_text(json.dumps(self._settings | {"parallel": {"timeout_minutes": 1}}))

    def submit(self, batch: str, *slurm: str, options: tuple[str, ...] = ()) -> int:
        options = options or ("--out", str(self.out))
        return self.cluster.submit(
            "--gpus-per-node=1", *slurm, LAUNCH / batch, self.config, *options
        )

    def rows(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []

    def wait_for_rows(self, number: int, count: int) -> None:
        def reached() -> bool:
            state = self.cluster.job(number)["JobState"]
            assert state in ("PENDING", "RUNNING"), self.cluster.log(number)
            return len(self.rows()) >= count

        wait_until(reached, 120, f"{count} iterations")

    def completed(self, number: int | str) -> str:
        """Wait for the end of a job; return its log."""
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


def test_two_nodes_stop_ahead_of_the_limit_are_queued_again_and_end(run):
    """The batch file's own `--signal=USR1@900` is used: the limit is moved to the job."""
    run.set(steps=FOREVER)
    number = run.submit("nodes.sbatch", "--nodes=2")
    run.wait_for_rows(number, 1)
    step = run.cluster.call("scontrol", "--oneliner", "show", "step", f"{number}.0")
    assert " CPUs=128 " in step and " Tasks=2 " in step
    run.cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=10")
    record = run.cluster.wait_for(number, "PENDING")
    run.cluster.call("scontrol", "update", f"JobId={number}", "TimeLimit=60")
    done = len(run.rows())
    assert record["Restarts"] == "1" and 1 <= done < FOREVER
    assert (run.out / "checkpoints" / f"step_{done:06d}").is_dir()
    run.set(steps=done + 2)
    log = run.completed(number)
    assert [row["step"] for row in run.rows()] == list(range(done + 2))
    assert "stopped as asked" in log and (run.out / "lora").is_dir()


def test_a_job_whose_node_dies_is_queued_again_and_goes_on(run):
    run.set(steps=FOREVER)
    run.set(log=run._settings["log"] | {"checkpoint_every": 1})
    number = run.submit("nodes.sbatch", "--nodes=2")
    run.wait_for_rows(number, 3)
    run.cluster.kill_node("n2")
    record = run.cluster.wait_for(number, "PENDING", "COMPLETED", "FAILED", "NODE_FAIL")
    done = len(run.rows())
    assert record["JobState"] == "PENDING" and record["Restarts"] == "1" and done >= 3
    run.set(steps=done + 2)
    run.cluster.start_node("n2")
    run.completed(number)
    assert [row["step"] for row in run.rows()] == list(range(done + 2))


def test_a_cancelled_job_keeps_its_state_and_is_not_queued_again(run):
    run.set(steps=FOREVER)
    number = run.submit("one_node.sbatch")
    run.wait_for_rows(number, 1)
    run.cluster.call("scancel", number)
    record = run.cluster.wait_for(number, "CANCELLED", "PENDING", "FAILED", "COMPLETED")
    assert record["JobState"] == "CANCELLED" and record["Restarts"] == "0"
    assert (run.out / "checkpoints" / f"step_{len(run.rows()):06d}").is_dir()


def test_the_tasks_of_an_array_train_one_seed_each_on_one_node_each(run):
    out = run.out.parent / "seed_%a"
    options = ("--set", "seed=%a", "--set", "steps=2", "--out", str(out))
    number = run.submit("one_node.sbatch", "--array=5-6", options=options)
    losses = []
    for seed in (5, 6):
        run.completed(f"{number}_{seed}")
        run.out = run.out.with_name(f"seed_{seed}")
        losses.append(run.rows()[0]["loss/fake"])
        assert len(run.rows()) == 2 and (run.out / "lora").is_dir()
    assert losses[0] != losses[1]


def test_an_array_whose_tasks_would_share_a_directory_is_refused_and_failures_end_the_job(run):
    array = run.submit("one_node.sbatch", "--array=0")
    number = run.submit("one_node.sbatch", options=("--set", "stepz=1"))
    for job, said in ((array, "seed=%a"), (number, "stepz")):
        record = run.cluster.wait_for(job, "FAILED", "COMPLETED", seconds=60)
        assert record["JobState"] == "FAILED" and record["Restarts"] == "0"
        assert said in run.cluster.log(job)
