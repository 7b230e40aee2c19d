"""Call `train` on two workers of Ray Train, which restarts them when one fails."""

from __future__ import annotations

import os
from pathlib import Path

from fit_distributed import launch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from train import train


def train_on_worker(config: dict[str, str]) -> None:
    """Train where the checkpoints are, which every worker can read."""
    os.chdir(config["folder"])
    launch(train)


if __name__ == "__main__":
    TorchTrainer(
        train_on_worker,
        train_loop_config={"folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(Path("ray").absolute()), failure_config=FailureConfig(max_failures=3)),
    ).fit()
