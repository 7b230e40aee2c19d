"""Runs under Ray Train, on a cluster of one node that ends with the program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from job import Check, plain, process_killed

COMMAND = "python ray_train.py"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}


def missing() -> str:
    try:
        version("ray")
    except PackageNotFoundError:
        return "pip install 'ray[train]'"
    return ""


NAME = f"Ray {'' if missing() else version('ray')}"
CHECKS = [
    Check(NAME, COMMAND, "equals one process", plain(COMMAND, **QUIET)),
    Check(NAME, COMMAND, "a worker killed, `FailureConfig(max_failures=3)`", process_killed(COMMAND, **QUIET)),
]
