"""Let launch take its processes from the fork server of processes.py, instead of spawning them."""

import contextlib
import dataclasses
import functools
from multiprocessing import forkserver

import pytest
from fit_distributed import elastic


@contextlib.contextmanager
def forked():
    """Make launches quick. Spawned processes import torch first, which costs two of them 5 CPU seconds."""
    forkserver.ensure_running()
    run, parent = elastic.run, forkserver._forkserver._forkserver_pid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elastic, "run", lambda job, *rest: run(dataclasses.replace(job, launcher=parent), *rest))
        patch.setattr(elastic, "LaunchConfig", functools.partial(elastic.LaunchConfig, start_method="forkserver"))
        yield
