"""Hide the accelerators, so that each test computes on the CPU wherever it runs. `-m gpu` runs those that need one."""

import os


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        # Before torch looks for devices. Processes that a test starts inherit it.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
