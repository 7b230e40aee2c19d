"""Runs under mpirun."""

from __future__ import annotations

import shutil
import signal

from job import Check, Job, plain, version

ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
NAME = f"Open MPI {version('mpirun.openmpi --version').rpartition(' ')[2]}"
OTHER = f"MPICH {version('mpichversion').rpartition(' ')[2].strip()}"
OPEN = "mpirun.openmpi -n 2 python train.py"
MPICH = "mpiexec.hydra -n 2 python train.py"


def missing() -> str:
    return "" if shutil.which("mpirun.openmpi") else "apt-get install openmpi-bin"


def killed(command: str):
    """Kill a process. mpirun ends the other one, and the same command resumes."""

    def run(job: Job) -> None:
        process = job.start(command, **ROOT)
        job.reach(40)
        job.kill_worker(1)
        job.end(process, *range(1, 256), seconds=30)
        job.run(command, **ROOT)
        job.expect_result(2, 2, resumed_from=35)

    return run


def signalled(command: str, number: signal.Signals, *statuses: int):
    """Send a signal to mpirun, which passes it on."""

    def run(job: Job) -> None:
        process = job.start(command, **ROOT)
        job.reach(41)
        process.send_signal(number)
        job.end(process, *statuses, seconds=60)
        job.expect(f"CheckpointSaver: stopped by {number.name}")
        job.run(command, **ROOT)
        job.expect_result(2, 2, resumed_from=41)

    return run


CHECKS = [
    Check(NAME, OPEN, "equals one process", plain(OPEN, **ROOT)),
    Check(NAME, OPEN, "a process killed, started again", killed(OPEN)),
    Check(NAME, OPEN, "SIGTERM to mpirun saves, started again", signalled(OPEN, signal.SIGTERM, *range(1, 256))),
    Check(NAME, OPEN, "SIGUSR1 to mpirun saves, started again", signalled(OPEN, signal.SIGUSR1, *range(1, 256))),
    Check(OTHER, MPICH, "equals one process", plain(MPICH, **ROOT)),
    Check(OTHER, MPICH, "a process killed, started again", killed(MPICH)),
    Check(
        OTHER, MPICH, "SIGTERM to mpiexec saves, started again", signalled(MPICH, signal.SIGTERM, *range(1, 256), -15)
    ),
]
