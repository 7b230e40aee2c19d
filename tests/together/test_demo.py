"""The demo trains, prints its accuracy next to the paper's, draws its curves, and resumes after Ctrl-C."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_program

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def demo(*arguments):
    return run_program(DEMO, *arguments)


@pytest.mark.parametrize(("model", "parameters"), [("cnn", 5210), ("mlp", 15210), ("linear", 410)])
def test_the_demo_trains(model, parameters, tmp_path):
    result = demo("--model", model, "--steps", 60, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    folder = tmp_path / f"{model}-60"
    assert lines[0] == f"MNIST-1D, {model} with {parameters} parameters, 60 steps"
    header = next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert header < 4
    assert lines[header].split()[1:7] == ["loss", "Acc@1", "Acc@5"] * 2
    assert lines[header + 1].startswith("  1/1 ")
    accuracy = float(lines[-5].removeprefix("test accuracy ").split("%")[0]) / 100
    assert accuracy == pytest.approx(float(lines[header + 1].split()[5]), abs=1e-3)
    assert lines[-4:] == [
        f"learning curves: {folder}/curves.png",
        f"TensorBoard: tensorboard --logdir {tmp_path}",
        f"checkpoints: python -m fit_callbacks.checkpoint {folder}",
        "to train again from scratch: add --fresh",
    ]
    assert {path.name for path in folder.glob("*.pt")} == {"best.pt", "last.pt"}
    assert (folder / "curves.png").stat().st_size > 5000
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1


def test_two_processes_end_alike(tmp_path):
    accuracy = {}
    for nproc in (1, 2):
        result = demo("--model", "mlp", "--steps", 40, "--nproc", nproc, "--out", tmp_path / str(nproc))
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("MNIST-1D, mlp")
        assert result.stdout.count("  1/1 ") == 1
        accuracy[nproc] = float(result.stdout.split("test accuracy ")[1].split("%")[0])
    assert abs(accuracy[1] - accuracy[2]) <= 0.2  # of 1000 samples, two may lie on the edge


def test_ctrl_c_is_resumed_by_the_same_command(tmp_path):
    arguments = ["--model", "linear", "--steps", 2000, "--out", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-u", DEMO, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The background job of a shell, in which tests may run, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for line in process.stdout:
        if line.startswith("  1/5 "):
            os.kill(process.pid, signal.SIGINT)
            break
    out, err = process.communicate()
    assert process.returncode == 130
    assert err == ""
    last = out.splitlines()[-1]
    assert last.startswith("CheckpointSaver: stopped by Ctrl-C in epoch ")
    assert last.endswith(f"Run the same command again to resume (checkpoint: {tmp_path}/linear-2000/last.pt)")

    resumed = demo(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    epochs = re.findall(r"^ *(\d+/5) ", resumed.stdout, re.MULTILINE)
    assert epochs[0] in ("2/5", "3/5")
    assert epochs[-1] == "5/5"

    finished = demo(*arguments)
    assert finished.returncode == 0, finished.stderr
    assert "nothing to train" in finished.stdout
    assert finished.stdout.splitlines()[-5:] == resumed.stdout.splitlines()[-5:]

    other = demo("--model", "linear", "--steps", 20, "--out", tmp_path)
    assert other.returncode == 0, other.stderr
    assert "  1/1 " in other.stdout

    fresh = demo("--model", "linear", "--steps", 20, "--out", tmp_path, "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert "  1/1 " in fresh.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "expected --steps to be 1 or more, got 0"),
        (["--nproc", "0"], "expected --nproc to be 1 or more, got 0"),
        (["--out", f"{DEMO}/runs"], f"--out {DEMO}/runs cannot be written to: Not a directory"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(DEMO), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DEMO), run_name="__main__")
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.splitlines()[-1] == f"demo.py: error: {message}"
    assert out == ""
