"""Runs under SLURM: a controller and two nodes on this machine, with a key, ports and folders of their own."""

from __future__ import annotations

import ctypes
import os
import pty
import secrets
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job import Check, FaultError, Job, until, version

NAME = f"SLURM {version('slurmd -V').rpartition(' ')[2]}"

CONF = """
ClusterName=fit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=46817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[1-2] NodeHostname={host} NodeAddr=node[1-2] Port=[46818-46819] CPUs=2
PartitionName=low Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF State=UP
"""

DIRECT = "srun --nodes=2 --ntasks-per-node=1 --wait=60 python train.py"
TASKS = """#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --requeue --signal=USR1@120
#SBATCH --open-mode=append --output=log
srun --wait=60 python train.py
status=$?
case $status in 138 | 143) scontrol requeue "$SLURM_JOB_ID" && sleep 60 ;; esac
exit $status
"""
LAUNCHES = """#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append --output=log
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 python train.py
"""


def missing() -> str:
    if os.geteuid():
        return "needs root"
    programs = ("slurmctld", "slurmd", "munged")
    return "" if all(map(shutil.which, programs)) else "apt-get install slurm-wlm munge"


@contextmanager
def cluster(top: Path) -> Iterator[None]:
    """Start the controller and the nodes, and end them."""
    folder = top / "slurm"
    (folder / "state").mkdir(parents=True)
    top.chmod(0o755)  # munged insists.
    host = version("hostname -s")
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    # Only this process and its children see the names of the nodes.
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {host} node1 node2\n")
    if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
        raise OSError("expected to make a namespace of mounts, and was refused")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    key = folder / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    names = {"--key-file": "key", "--socket": "munge.socket", "--pid-file": "munge.pid", "--log-file": "munge.log"}
    munge = [f"{option}={folder}/{name}" for option, name in {**names, "--seed-file": "munge.seed"}.items()]
    commands = [["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", name] for name in ("node1", "node2")]
    daemons = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("ab")
            daemons.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=log, stderr=log))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while version("sinfo --noheader --Format=Nodes,StateCompact").split() != ["2", "idle"]:
            if time.monotonic() > deadline:
                raise FaultError(version("sinfo"))
            time.sleep(0.5)
        yield
    finally:
        deadline = time.monotonic() + 60
        while version("squeue --noheader") and time.monotonic() < deadline:
            subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], stderr=subprocess.DEVNULL)
            subprocess.run(["scancel", "--user=root"], stderr=subprocess.DEVNULL)
            time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


# What a user does.


def submit(job: Job, script: str, options: str = "", **variables: str) -> str:
    """Submit a script, and return the number of the job."""
    (job.folder / "job.sh").write_text(script)
    done = job.call(f"sbatch --parsable {options} job.sh", **variables)
    return done.strip()


def state(job: Job, number: str) -> str:
    return job.call(f"squeue --noheader --states=all --Format=StateCompact --jobs={number}").strip()


def end(job: Job, number: str, wanted: str = "CD") -> None:
    """Wait for a job. One that was put back into the queue starts at once, and not two minutes later."""

    def is_over() -> bool:
        now = state(job, number)
        if now == "PD":  # Possibly started since then, which scontrol calls an error.
            job.call(f"scontrol update JobId={number} StartTime=now || true")
        return now in ("CD", "F", "TO")

    until(is_over, "the end of the job", job, seconds=300)
    if state(job, number) != wanted:
        raise FaultError(f"expected the job to end with {wanted}, got {state(job, number)}\n{job.log()[-4000:]}")


# The checks.


def plain(script: str):
    def run(job: Job) -> None:
        end(job, submit(job, script))
        job.expect_result(2)

    return run


def direct(job: Job) -> None:
    job.run(DIRECT)
    job.expect_result(2)


def killed(job: Job) -> None:
    """Kill a task. SLURM ends the job, and the same job resumes when it is submitted again."""
    number = submit(job, TASKS)
    job.reach(40)
    job.kill_worker(1)
    end(job, number, "F")
    end(job, submit(job, TASKS))
    job.expect_result(2, 2, resumed_from=35)


def raises(job: Job) -> None:
    """Let one task raise. The job fails, and is not put back into the queue, where it would fail for ever."""
    number = submit(job, TASKS)
    job.reach(40)
    (job.folder / "fail").touch()
    end(job, number, "F")
    job.expect("RuntimeError: a fault on rank 1")


def time_limit(job: Job) -> None:
    """Let the time limit come near. SLURM sends the signal up to a minute earlier than it was asked to."""
    number = submit(job, TASKS, "--time=3", PACE="0.25")
    until(lambda: "stopped by SIGUSR1" in job.log(), "a run that has saved", job)
    until(lambda: state(job, number) == "PD", "the job back in the queue", job)
    end(job, number)
    sizes = [2] * len(job.starts())
    if len(sizes) < 2:
        raise FaultError("expected a second start")
    job.expect_result(*sizes)


def preempted(job: Job) -> None:
    """Submit a job of a partition with a higher priority, which takes both nodes."""
    number = submit(job, TASKS, "--exclusive", PACE="0.1")
    job.reach(41)
    other = job.call(
        "sbatch --parsable --partition=high --nodes=2 --exclusive --output=other --wrap='srun sleep 5'"
    ).strip()
    until(lambda: state(job, number) == "PD", "the job back in the queue", job)
    job.expect("stopped by SIGTERM")
    until(lambda: state(job, other) == "CD", "the end of the other job", job)
    end(job, number)
    job.expect_result(2, 2, resumed_from=41)


def cancelled(job: Job) -> None:
    """Cancel a job, which has to stay cancelled."""
    number = submit(job, TASKS, PACE="0.1")
    job.reach(41)
    job.call(f"scancel {number}")
    until(lambda: "stopped by SIGTERM" in job.log(), "a run that has saved", job)
    until(lambda: state(job, number) not in ("R", "CG"), "the end of the job", job)
    time.sleep(3)
    if state(job, number) != "CA":
        raise FaultError(f"expected the job to stay cancelled, got {state(job, number)}\n{job.log()[-4000:]}")


def requeued(job: Job) -> None:
    number = submit(job, TASKS, PACE="0.1")
    job.reach(41)
    job.call(f"scontrol requeue {number}")
    until(lambda: "stopped by SIGTERM" in job.log(), "a run that has saved", job)
    end(job, number)
    job.expect_result(2, 2, resumed_from=41)


def node_down(job: Job) -> None:
    number = submit(job, TASKS, PACE="0.1")
    job.reach(41)
    job.call("scontrol update NodeName=node2 State=DOWN Reason=fault")
    until(lambda: state(job, number) == "PD", "the job back in the queue", job)
    job.call("scontrol update NodeName=node2 State=RESUME")
    end(job, number)
    job.expect_result(2, 2, resumed_from=35)


def launch_restarts(job: Job) -> None:
    number = submit(job, LAUNCHES)
    job.reach(40)
    job.kill_worker(1)
    end(job, number)
    job.expect_result(2, 2, resumed_from=35)


def typed(command: str):
    """Type `python train.py` in a shell. It is a single process, however many tasks there are."""

    def run(job: Job) -> None:
        type_in(job, command, "python train.py")
        job.expect_result(1)

    return run


def script_on_terminal(job: Job) -> None:
    (job.folder / "run.sh").write_text("python train.py\ntrue\n")
    type_in(job, "srun --nodes=2 --ntasks-per-node=1 --pty bash run.sh", "")
    job.expect_result(2)


def type_in(job: Job, command: str, line: str) -> None:
    """Run a command on a terminal of its own, and type a line there, and `exit`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(job.folder)
        os.environ.update(job.environment())
        os.execvp("bash", ["bash", "-c", f"exec {command}"])
    seen, deadline, to_type = b"", time.monotonic() + 120, [f"{line}\n", "exit\n"] if line else []
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # It is closed.
                break
        if to_type and seen.count(b"# ") > 2 - len(to_type):
            os.write(terminal, to_type.pop(0).encode())
    (job.folder / "log").write_bytes(seen)
    os.close(terminal)
    os.waitpid(pid, 0)


SHELL = "srun --nodes=2 --ntasks-per-node=1 --pty bash --norc -i"
ALLOCATION = "salloc --nodes=2 --ntasks-per-node=1 bash --norc -i"
CHECKS = [
    Check(NAME, DIRECT, "equals one process", direct),
    Check(NAME, "sbatch, one task is one process", "equals one process", plain(TASKS)),
    Check(NAME, "sbatch, one task is one process", "a task killed, submitted again", killed),
    Check(NAME, "sbatch, one task is one process", "a task raises: fails, and does not come back", raises),
    Check(NAME, "sbatch, one task is one process", "`scontrol requeue`", requeued),
    Check(NAME, "sbatch, one task is one process", "preempted", preempted),
    Check(NAME, "sbatch, one task is one process", "`scancel`: saved, and does not come back", cancelled),
    Check(NAME, "sbatch, one task is one process", "a node down and back", node_down),
    Check(NAME, "sbatch, one task is one process", "`--signal=USR1@120` before the time limit", time_limit),
    Check(NAME, "sbatch, one task is one launch", "equals one process", plain(LAUNCHES)),
    Check(NAME, "sbatch, one task is one launch", "a process killed", launch_restarts),
    Check(NAME, SHELL, "typed there: a single process", typed(SHELL)),
    Check(NAME, ALLOCATION, "typed there: a single process", typed(ALLOCATION)),
    Check(NAME, "srun --nodes=2 --ntasks-per-node=1 --pty bash run.sh", "a script: two processes", script_on_terminal),
]
