"""Runs under Ray Train, on a cluster of one node that ends with the program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from job import Check, Job

COMMAND = "python ray_train.py"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


def missing() -> str:
    try:
        version("ray")
    except PackageNotFoundError:
        return "pip install 'ray[train]'"
    return ""


def plain(job: Job) -> None:
    job.run(COMMAND, **QUIET)
    job.expect_result(2)


def killed(job: Job) -> None:
    process = job.start(COMMAND, **QUIET)
    job.reach(40)
    job.kill_worker(1)
    job.end(process, 0)
    job.expect_result(2, 2, resumed_from=35)


NAME = f"Ray {'' if missing() else version('ray')}"
CHECKS = [
    Check(NAME, COMMAND, "equals one process", plain),
    Check(NAME, COMMAND, "a worker killed, `FailureConfig(max_failures=3)`", killed),
]
