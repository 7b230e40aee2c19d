"""Scripts run as processes of their own, for what a launch does to the process that calls it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from processes import Program


def environment(**variables):
    """The variables of a new process that imports what this one can import, with one thread."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1", **variables}


def start(folder, code, *arguments, module=None, **variables):
    """A process that runs `code` as a script. The fork server starts it, or Python, with the options in `module`."""
    script = Path(folder) / "script.py"
    script.write_text(code)
    command = [str(script), *map(str, arguments)]
    if module is None:
        return Program(command, folder, environment(**variables))
    return subprocess.Popen(
        [sys.executable, *module, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        cwd=folder,
        start_new_session=True,  # so that a signal to its group is what Ctrl-C sends
    )


def until(condition, seconds=240):
    """Wait for a condition, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def numbers(folder, pattern):
    """The numbers in the files of a pattern, as soon as they are written."""
    texts = [path.read_text() for path in sorted(Path(folder).glob(pattern))]
    return [int(text) for text in texts if text.endswith("\n")]


def port():
    """A port that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])
