"""A launch whose processes fail says which of them did, and why."""

import functools
import os
import signal
import sys
import time

import pytest
from failing import boom, failed, train
from programs import start

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize(("place", "guilty"), [("training", 1), ("validation", 0), ("save", 1)])
def test_the_error_is_that_of_the_guilty_rank_and_nobody_is_left(place, guilty):
    error, _ = failed(train, place, guilty, boom, timeout=60)
    assert error.rank == guilty
    assert str(error).startswith(f"rank {guilty} of 2 failed\n\nTraceback (most recent call last):\n")
    text, _, note = str(error).partition("\nfit: raised in ")
    assert text.endswith('\n    raise ValueError("boom")\nValueError: boom')
    assert not note or note.startswith("epoch 1, ")
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


SCRIPT = """
from fit_distributed import launch
from failing import boom, train

if __name__ == "__main__":
    launch(train, "callback", 1, boom, nproc=2, backend="gloo", timeout=60)
"""


def test_the_original_traceback_is_the_last_thing_printed_and_the_only_noise(tmp_path):
    process = start(tmp_path, SCRIPT)
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    end = lines.index("ValueError: boom")
    assert all(line.startswith(("fit: raised in epoch 1", "  ")) for line in lines[end + 1 :])
    assert lines[end - 1].strip() in ('raise ValueError("boom")', "^" * 25)
    assert "fit_distributed.LaunchError: rank 1 of 2 failed" in lines


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named():
    error, _ = failed(train, "training", 1, kill, timeout=60)
    assert str(error) == "rank 1 of 2 failed\n\nrank 1 was killed by signal 9 (out of memory?)"


def leave():
    os._exit(3)


def sleep_for_ever():
    while True:
        time.sleep(60)


def test_a_process_that_exits_without_a_word_and_one_that_calls_exit_are_named():
    error, _ = failed(train, "training", 0, leave, timeout=60)
    assert error.rank == 0
    assert "ended with exit code 3" in str(error)
    error, _ = failed(train, "training", 1, functools.partial(sys.exit, 4), timeout=60)
    assert error.rank == 1
    assert str(error).endswith("RuntimeError: the function called sys.exit(4). Let it return instead")


@pytest.mark.parametrize("place", ["training", "save"])
def test_a_rank_that_sleeps_is_named_after_the_timeout(place):
    error, seconds = failed(train, place, 1, sleep_for_ever, timeout=4)
    assert "\nTimeoutError: rank 1 did not come within 4 s to where rank 0 waited: failing.py, line " in str(error)
    assert seconds < 60


def stubborn():
    return (item for item in "generators cannot be pickled")


def test_a_value_that_cannot_be_sent_back_is_named():
    error, _ = failed(stubborn, timeout=60)
    assert "TypeError: expected a result that can be sent back, got a generator" in str(error)
