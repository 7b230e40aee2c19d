"""The examples do what they say."""

from pathlib import Path

from processes import run_program
from whole import whole

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_minimal_tells_the_arms_apart():
    result = run_program(EXAMPLES / "minimal.py", "--epochs", "10")
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.split()[2].rstrip("%"))
    assert accuracy > 95
    assert result.stdout.endswith("after 10 epochs\n")


def test_resume_ends_with_the_same_bits():
    result = run_program(EXAMPLES / "resume.py", "--kills", "1", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].startswith("kill -9, number 1, in step")
    assert lines[0].split()[-1] == lines[-2].split()[-1]
    assert lines[-1] == "the same bits"


@whole  # test_survive.py kills more, in processes that start faster
def test_a_worker_is_killed_and_the_run_survives():
    result = run_program(EXAMPLES / "survive.py", "--kills", "1", "--epochs", "2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "the same bits"
