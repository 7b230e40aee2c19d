"""The processes of a launch end when the one that launched them is ended."""

import os
import signal
import subprocess

import pytest
from programs import is_alive, numbers, start, until

pytestmark = pytest.mark.timeout(180)

SLEEPERS = """
import os, pathlib, signal, sys, time
from fit_distributed import launch, rank

def sleep():
    print("bar", end="", flush=True)
    path = pathlib.Path(f"pid{rank()}")
    path.write_text(f"{os.getpid()}\\n")
    try:
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        try:
            time.sleep(0.5)  # as long as a save may take: a second signal would break it off
        except KeyboardInterrupt:
            sys.exit("twice")
        pathlib.Path(f"saved{rank()}").touch()
        raise  # as CheckpointSaver does; a process that continues is waited for

if __name__ == "__main__":
    # A shell's background job, in which the tests may run, is deaf to Ctrl-C, and so are its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    try:
        launch(sleep, nproc=2, backend="gloo", timeout=60)
    except KeyboardInterrupt:
        print("interrupted", signal.getsignal(signal.SIGTERM) is before)
"""


def sleepers(folder):
    """A launch whose two processes sleep, and their ids."""
    process = start(folder, SLEEPERS)
    return process, until(lambda: len(found := numbers(folder, "pid*")) == 2 and found)


def test_no_process_outlives_the_launcher(tmp_path):
    process, workers = sleepers(tmp_path)
    process.kill()
    until(lambda: not any(map(is_alive, workers)), seconds=5)
    process.communicate()


def test_ctrl_c_is_a_keyboard_interrupt_and_the_processes_are_gone(tmp_path):
    process, workers = sleepers(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert "interrupted True" in out, err
    assert err == ""
    assert process.returncode == 0
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
    assert not any(map(is_alive, workers))


def test_a_signal_that_nobody_handles_ends_the_launcher(tmp_path):
    process, workers = sleepers(tmp_path)
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(map(is_alive, workers))


def test_two_jobs_at_once_do_not_meet(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    jobs = [sleepers(folder) for folder in folders]
    assert len({worker for _, workers in jobs for worker in workers}) == 4
    for process, _ in jobs:
        process.send_signal(signal.SIGINT)
    for process, _ in jobs:
        out, err = process.communicate()
        assert "interrupted True" in out, err


def test_the_processes_are_gone_when_a_launch_in_a_thread_fails(tmp_path):
    code = """
import threading
from fit_distributed import LaunchError, launch
from failing import boom

def call():
    try:
        launch(boom, nproc=2, backend="gloo", timeout=60)
    except LaunchError as error:
        print(error.rank in (0, 1), str(error).splitlines()[-1])

if __name__ == "__main__":
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
"""
    process = start(tmp_path, code)
    out, err = process.communicate()
    assert out == "True ValueError: boom\n", err
    children = subprocess.run(["ps", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    assert "python" not in children.stdout
