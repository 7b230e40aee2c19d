"""Find out which process this is, and of how many. Each call looks it up, so an import does not decide anything."""

from __future__ import annotations

import os
import re
import sys
import zlib
from pathlib import Path

import torch
from fit_core import has_process_group
from torch import distributed

__all__ = ["barrier", "device", "is_main", "launcher_variables", "local_rank", "rank", "world_size"]


def rank() -> int:
    """Return the number of this process among those of all machines, from 0."""
    return distributed.get_rank() if has_process_group() else int(launcher_variables().get("RANK", 0))


def world_size() -> int:
    """Return the number of processes on all machines."""
    return distributed.get_world_size() if has_process_group() else int(launcher_variables().get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return int(launcher_variables().get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Return whether this is rank 0, the process that prints and writes for all."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes. A single process returns at once.

    Examples:
        >>> if is_main():
        ...     download()
        >>> barrier()
    """
    if has_process_group():
        distributed.barrier()


def device() -> torch.device:
    """Return the device of this process: the accelerator with the number of its local rank, or the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    if "LOCAL_RANK" not in launcher_variables():
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    # The remainder, because SLURM may show each process only one device, and processes with gloo may share one.
    return torch.device(accelerator.type, local_rank() % torch.accelerator.device_count())


def launcher_variables() -> dict[str, str]:
    """Return the variables that the launcher of this process has set, by torchrun's names. Empty without a launcher.

    Returns:
        RANK and WORLD_SIZE, and LOCAL_RANK, MASTER_ADDR and MASTER_PORT where they are known.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {name: env[name] for name in names if name in env}
    return _from_mpi() or _from_slurm()


def _from_slurm() -> dict[str, str]:
    """Read the variables of a task of srun."""
    env = os.environ
    job, step = (int(env.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    # The script of sbatch has these variables too, but is not a process of a step.
    if "SLURM_PROCID" not in env or ("SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env) or _is_interactive(step):
        return {}
    size = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "1")
    if size == "1":
        return {}
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", "localhost")
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": env.get("MASTER_ADDR") or _first_host(hosts),
        "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + (job + 1009 * step) % 10000),  # Another one for each step.
    }


def _is_interactive(step: int) -> bool:
    """Return whether this step of SLURM is interactive, a shell or a notebook, so that its tasks are independent."""
    if step >= 2**32 - 16 or _in_notebook():  # SLURM's own steps have the last numbers.
        return True
    # With --pty only the first task has the terminal.
    return "SLURM_PTY_PORT" in os.environ and os.environ["SLURM_PROCID"] == "0" and not _belongs_to_task()


def _belongs_to_task() -> bool:
    """Return whether srun has started this process, itself or in a script, rather than a person in a shell there.

    A shell gives each command that is typed a process group of its own. A script leaves its commands in that of the
    task, whose leader is a child of slurmstepd.
    """
    leader = os.getsid(0)
    try:
        parent = Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1]
        return os.getpgrp() == leader and Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd"
    except OSError:
        return False


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. A program may import IPython without being one."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _from_mpi() -> dict[str, str]:
    """Read the variables of a process of mpirun: of Open MPI, or of MPICH and its relatives."""
    env = os.environ
    for rank, size, local_rank, local_size in (
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if rank not in env or env.get(size, "1") == "1":
            continue
        if rank == "PMI_RANK" and "SLURM_PROCID" in env:  # srun --mpi=pmi2 sets it too.
            continue
        place = {"RANK": env[rank], "WORLD_SIZE": env[size], "LOCAL_RANK": env.get(local_rank, "0")}
        if "MASTER_ADDR" in env or env.get(local_size) == env[size]:
            job = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid") or str(os.getppid())
            place["MASTER_ADDR"] = env.get("MASTER_ADDR", "localhost")
            place["MASTER_PORT"] = env.get("MASTER_PORT") or str(20000 + zlib.crc32(job.encode()) % 10000)
        return place
    return {}


def _first_host(hosts: str) -> str:
    """Return the first host of SLURM's list: `"gpu03-ib"` of `"gpu[03-05,9]-ib,cpu1"`."""
    first = re.match(r"([^,\[]*)(?:\[([^],-]*)[^]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in first.groups()) if first else hosts
