"""Which process this is, and of how many. Asked at each call, so that an import decides nothing."""

from __future__ import annotations

import os
import re

import torch
from fit_core import has_process_group
from torch import distributed

__all__ = ["barrier", "device", "is_main", "launcher_variables", "local_rank", "rank", "world_size"]


def rank() -> int:
    """The number of this process among all of all machines, from 0."""
    return distributed.get_rank() if has_process_group() else int(launcher_variables().get("RANK", 0))


def world_size() -> int:
    """The number of processes on all machines."""
    return distributed.get_world_size() if has_process_group() else int(launcher_variables().get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process among those of this machine, from 0."""
    return int(launcher_variables().get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this is rank 0: the process that prints, and writes what all have in common."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here. Alone, go on at once.

    Example:
        >>> if is_main():
        ...     download()
        >>> barrier()
    """
    if has_process_group():
        distributed.barrier()


def device() -> torch.device:
    """The device of this process: the accelerator with the number of its local rank, or else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return torch.device("cpu")
    if "LOCAL_RANK" not in launcher_variables():
        return torch.device(accelerator.type, torch.accelerator.current_device_index())
    # SLURM may show each process one device only, and processes on gloo may share one: hence the remainder.
    return torch.device(accelerator.type, local_rank() % torch.accelerator.device_count())


def launcher_variables() -> dict[str, str]:
    """What the launcher of this process told it, in torchrun's names; empty when it was started alone.

    Returns:
        RANK and WORLD_SIZE, and LOCAL_RANK, MASTER_ADDR and MASTER_PORT where they are known.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {name: env[name] for name in names if name in env}
    # The script of sbatch has these variables as well, but is no process of a step.
    if "SLURM_PROCID" not in env or ("SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env):
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
        "MASTER_PORT": env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 10000),
    }


def _first_host(hosts: str) -> str:
    """The first of SLURM's list: ``"gpu[03-05,9]-ib,cpu1"`` gives ``"gpu03-ib"``."""
    first = re.match(r"([^,\[]*)(?:\[([^],-]*)[^]]*\])?([^,\[]*)", hosts)
    return "".join(part or "" for part in first.groups()) if first else hosts
