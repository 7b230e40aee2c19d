"""The examples do what they say."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_minimal_tells_the_arms_apart():
    command = [sys.executable, str(EXAMPLES / "minimal.py"), "--epochs", "10"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.split()[2].rstrip("%"))
    assert accuracy > 95
    assert result.stdout.endswith("after 10 epochs\n")


def test_resume_ends_with_the_same_bits():
    command = [sys.executable, str(EXAMPLES / "resume.py"), "--kills", "2", "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].startswith("kill -9, number 1, in step")
    assert lines[0].split()[-1] == lines[-2].split()[-1]
    assert lines[-1] == "the same bits"


def test_a_worker_is_killed_and_the_run_survives():
    command = [sys.executable, str(EXAMPLES / "survive.py"), "--kills", "1", "--epochs", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "the same bits"
