"""A Slurm of one node, in a folder of its own: munged, slurmctld and slurmd, on free ports."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
CPUS = 4  # said to Slurm, whatever the machine has
UP_S = 120.0

CONFIGURATION = """\
ClusterName=dlock
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SwitchType=switch/none
SchedulerType=sched/backfill
SelectType=select/linear
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def program(name: str) -> str | None:
    """Where it is; the daemons are in sbin, which not every PATH has."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask(command: list[str], environment: dict[str, str], seconds: float = 60) -> str:
    """What it prints. AssertionError with all that it said if it fails."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
        check=False, env=environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def end(pid_file: Path) -> None:
    """Ends the daemon that has written this, and waits until it is gone."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text(encoding="utf-8"))
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)


def start_munge(folder: Path) -> None:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    ask([str(program("munged")), "--force", f"--key-file={key}",
         f"--socket={folder}/munge.sock", f"--pid-file={folder}/munged.pid",
         f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"],
        dict(os.environ))


def wait_for_node(environment: dict[str, str]) -> None:
    """AssertionError if it takes no jobs."""
    deadline = time.monotonic() + UP_S
    said = ""
    while said != "idle":
        assert time.monotonic() < deadline, f"the node is {said or 'not known'}"
        time.sleep(0.1)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            said = ask([str(program("sinfo")), "-h", "-o", "%T"], environment, 10).strip()


@contextlib.contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch and srun find it. Skips where it is not installed, or cannot
    run (a container may forbid it)."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge")
    # Not pytest's folder: the path of a unix socket is short.
    with tempfile.TemporaryDirectory(prefix="dlock-slurm-") as name:
        folder = Path(name)
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], user=getpass.getuser(), folder=folder,
            control_port=free_port(), node_port=free_port(), cpus=CPUS), encoding="utf-8")
        environment = {**os.environ, "SLURM_CONF": str(configuration)}
        try:
            try:
                start_munge(folder)
                ask([str(program("slurmctld")), "-c"], environment)
                ask([str(program("slurmd"))], environment)
                wait_for_node(environment)
            except AssertionError as problem:
                logs = [path.read_text(encoding="utf-8", errors="replace").splitlines()[-2:]
                        for path in sorted(folder.glob("*.log"))]
                pytest.skip(f"Slurm does not run here: {problem}; {logs}")
            yield environment
        finally:
            for daemon in ("slurmd", "slurmctld", "munged"):
                end(folder / f"{daemon}.pid")
