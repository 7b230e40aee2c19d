"""Hide the accelerators, so that each test computes on the CPU wherever it runs. `-m gpu` runs those that need one."""

import multiprocessing
import os

import pytest

# What a process of tests/helpers/processes.py has imported already. A new one takes seconds for it.
PRELOADED = (
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch.utils.tensorboard"),
    *("pytest", "fit_core.testing", "mnist1d.data"),
)
multiprocessing.set_forkserver_preload(list(PRELOADED))


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        # Before torch looks for devices. Processes that a test starts inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Start one test process more than there are cores, since tests of several processes often wait."""
    return (yield) + 1
