"""The demo trains, tells its accuracy beside the paper's, and draws its curves."""

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.mark.parametrize(("model", "parameters"), [("cnn", 5210), ("mlp", 15210), ("linear", 410)])
def test_the_demo_trains(model, parameters, tmp_path):
    command = [sys.executable, str(DEMO), "--model", model, "--steps", "60", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"MNIST-1D, {model} with {parameters} parameters, 60 steps"
    assert lines[1].startswith("Epoch 1/1  train loss")
    assert lines[-4].startswith("test accuracy ")
    assert lines[-3] == f"learning curves: {tmp_path / model}/curves.png"
    assert lines[-2] == f"TensorBoard: tensorboard --logdir {tmp_path}"
    assert lines[-1] == f"checkpoints: python -m fit_callbacks.checkpoint {tmp_path / model}"
    assert {path.name for path in (tmp_path / model).glob("*.pt")} == {"best.pt", "last.pt"}
    assert (tmp_path / model / "curves.png").stat().st_size > 5000
    assert len(list((tmp_path / model).glob("events.out.tfevents.*"))) == 1


def test_two_processes_tell_the_same(tmp_path):
    accuracy = {}
    for nproc in ("1", "2"):
        command = [sys.executable, str(DEMO), "--model", "mlp", "--steps", "40", "--out", str(tmp_path)]
        result = subprocess.run([*command, "--nproc", nproc], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("MNIST-1D, mlp")
        assert result.stdout.count("Epoch 1/1") == 1
        accuracy[nproc] = float(result.stdout.split("test accuracy ")[1].split("%")[0])
    assert abs(accuracy["1"] - accuracy["2"]) <= 0.2  # of 1000 samples, two may lie on the edge


def test_steps_that_mean_nothing_are_refused():
    result = subprocess.run([sys.executable, str(DEMO), "--steps", "0"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "--steps must be 1 or more, got 0" in result.stderr
