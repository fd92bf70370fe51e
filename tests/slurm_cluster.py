"""A SLURM cluster of two nodes on this machine: real daemons in a separate folder, run as root.

As a program, it starts a cluster and stops it: exit status 0 if that works on this machine, else 1
with the reason.

Uses Debian's `slurmctld slurmd slurm-client munge`. Nothing outside the folder is written: keys,
sockets, state and logs are in it, ports are free ones, and a node is an address on the loopback.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SWITCH = "TDMVID_TEST_SLURM"
"""Set this variable to 1 to use a real cluster. `.ci/run` installs SLURM and sets it."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "srun")
LAUNCH = Path(__file__).resolve().parents[1] / "launch" / "slurm"
NODES = ("n1", "n2")
DEAD_AFTER = 6
"""Seconds of silence after which the controller considers a node dead."""
REQUEUED_AFTER = 5
"""Seconds before a job that was queued again can start (lifetime of a credential)."""


def missing() -> str:
    """Return why no cluster can run on this machine; "" if one can."""
    if os.environ.get(SWITCH) != "1":
        return f"{SWITCH}=1 is not set"
    return lacking()


def lacking() -> str:
    """Return what a cluster needs and this machine lacks."""
    if os.getuid() != 0:
        return "SLURM's daemons need root"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=SEARCH)]
    return f"not installed: {' '.join(absent)}" if absent else ""


SEARCH = os.environ.get("PATH", "") + ":/usr/sbin"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def wait_until(reached: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a state of the cluster, and fail if it is not reached."""
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.05)


class Cluster:
    """Two nodes with 64 simulated CPUs and 8 simulated GPUs each.

    Args:
        folder: Folder for everything that the daemons write.
    """

    def __init__(self, folder: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Cluster:
        self._configure()
        try:
            self._start(
                "munged", "munged", "--foreground", "--force", "--num-threads=1", *self._munge()
            )
            wait_until((self.folder / "munge.socket").exists, 10, "munged listens")
            self._start("slurmctld", "slurmctld", "-D", "-f", self.conf)
            for node in NODES:
                self.start_node(node)
            wait_until(lambda: self.idle(NODES), 20, "both nodes are idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the daemons and the remaining processes of their jobs, by process ID."""
        for daemon in reversed(self._daemons.values()):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
        for process in self.processes():
            kill(process)
        for daemon in self._daemons.values():
            daemon.wait(5)

    def _munge(self) -> list[str]:
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        return [
            *(f"--{option}={self.folder}/munge.{end}" for option, end in names.items()),
            f"--log-file={self.folder}/munged.log",
        ]

    def _configure(self) -> None:
        control, *ports = free_ports(1 + len(NODES))
        for card in range(8):
            (self.folder / f"gpu{card}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        host = socket.gethostname().split(".")[0]
        lines = [
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={control}",
            "SlurmUser=root",
            "SlurmdUser=root",
            f"AuthInfo=socket={self.folder}/munge.socket,cred_expire={REQUEUED_AFTER}",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/%n.pid",
            f"SlurmdTimeout={DEAD_AFTER}",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            "SchedulerType=sched/builtin",
            "SchedulerParameters=sched_interval=1,sched_min_interval=0",
            "SlurmdParameters=config_overrides",
            "GresTypes=gpu",
            "JobRequeue=1",
            "ReturnToService=2",
            "MpiDefault=none",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
                " CPUs=64 Gres=gpu:8"
                for node, port in zip(NODES, ports)
            ),
            f"PartitionName=all Nodes={','.join(NODES)} Default=YES State=UP OverSubscribe=NO",
        ]
        self.conf.write_text("\n".join(lines) + "\n")

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: x for name, x in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        }
        return kept | {"SLURM_CONF": str(self.conf), "PATH": SEARCH}

    def _start(self, name: str, *command: object, **environment: str) -> None:
        with (self.folder / f"{name}.said").open("a") as log:
            self._daemons[name] = subprocess.Popen(
                list(map(str, command)),
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        self._start(node, "slurmd", "-D", "-N", node, "-f", self.conf, SLURMD_NODENAME=node)

    def kill_node(self, node: str) -> None:
        """Kill a node immediately with everything that runs on it, like a power failure."""
        for process in self.processes(f"SLURMD_NODENAME={node}"):
            kill(process)
        self._daemons.pop(node).wait(5)

    def processes(self, *variables: str) -> list[int]:
        """Return the processes that this cluster started, identified by their environment."""
        wanted = {f"SLURM_CONF={self.conf}", *variables}
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and wanted <= set(variables_of(folder))
        ]

    def call(self, *command: object) -> str:
        """Run a SLURM command and return its output."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def idle(self, nodes: tuple[str, ...]) -> bool:
        with contextlib.suppress(RuntimeError):
            said = self.call("scontrol", "--oneliner", "show", "nodes")
            return all(re.search(rf"NodeName={node} .*State=IDLE ", said) for node in nodes)
        return False

    def submit(self, *arguments: object) -> int:
        """Submit a job from the cluster's folder and return its number."""
        said = subprocess.run(
            ["sbatch", "--parsable", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment
            | {
                "PYTHON": sys.executable,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "DS_ACCELERATOR": "cpu",
                "PYTHONPATH": str(LAUNCH.parents[1]),
            },
            capture_output=True,
            text=True,
        )
        assert said.returncode == 0, said.stderr
        return int(said.stdout)

    def end_jobs(self) -> None:
        """Cancel all jobs, so that both nodes are free."""
        self.call("scancel", "--user=root")
        for process in self.processes():
            if any(
                one.startswith("SLURM_JOB_ID=") for one in variables_of(Path(f"/proc/{process}"))
            ):
                kill(process)
        for node in NODES:
            if node not in self._daemons:
                self.start_node(node)
        wait_until(lambda: self.idle(NODES), 30, "both nodes are idle")

    def job(self, number: int | str) -> dict[str, str]:
        """Return the controller's record of a job, or of a task of an array ("7_0")."""
        said = self.call("scontrol", "--oneliner", "show", "job", number).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", said))

    def log(self, number: int | str) -> str:
        path = self.folder / f"tdmvid-{self.job(number)['JobId']}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, number: int | str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Wait until a job is in one of several states, and return its record."""
        wait_until(
            lambda: self.job(number)["JobState"] in states, seconds, f"job {number} is {states}"
        )
        return self.job(number)


def variables_of(process: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (process / "environ").read_bytes().decode(errors="replace").split("\0")
    return []


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def main() -> int:
    reason = lacking()
    if not reason:
        with tempfile.TemporaryDirectory() as folder:
            try:
                with Cluster(Path(folder)) as cluster:
                    cluster.call("srun", "--nodes=2", "true")
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                reason = str(error)
    if reason:
        print(reason, file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
