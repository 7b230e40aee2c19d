"""Two launches on one machine stand for two hosts: the one where they meet dies, or the way to it falls silent."""

import contextlib
import json
import os
import select
import signal
import socket
import threading
from pathlib import Path

import pytest
from programs import is_alive, numbers, port, start, until

pytestmark = pytest.mark.timeout(400)

NODE = """
import json, os, pathlib, sys, time
import torch
from fit_distributed import launch, rank

def train(node, steps):
    path = pathlib.Path("step")
    here = [json.loads(path.read_text()) if path.exists() else [0, 0.0]]
    torch.distributed.broadcast_object_list(here, src=0)
    (step, total), first = here[0], here[0][0]
    pathlib.Path(f"pid-{node}-{rank()}").write_text(f"{os.getpid()}\\n")
    while step < steps:
        part = torch.tensor(float((rank() + 1) * (step + 1)), dtype=torch.float64)
        torch.distributed.all_reduce(part)
        step, total = step + 1, total * 0.9 + float(part)
        if rank() == 0:
            pathlib.Path("step.part").write_text(json.dumps([step, total]))
            os.replace("step.part", "step")
        time.sleep(0.05)  # long enough to be killed in the middle
    return total, first > 0

if __name__ == "__main__":
    node, port, steps, timeout, restarts = sys.argv[1:]
    nodes = {"nnodes": 2, "rdzv": f"localhost:{port}", "max_restarts": int(restarts), "timeout": float(timeout)}
    print(json.dumps(launch(train, node, int(steps), nproc=1, backend="gloo", **nodes)))
"""


def gold(steps):
    total = 0.0
    for step in range(steps):
        total = total * 0.9 + 3.0 * (step + 1)
    return total


def is_listening(number):
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", int(number))) == 0


def wait_for_step(folder, number):
    def reached():
        path = Path(folder, "step")
        return path.exists() and json.loads(path.read_text())[0] >= number

    until(reached, seconds=180)


class Proxy:
    """Passes connections on to another port, until it falls silent without closing them."""

    def __init__(self, target):
        self.target, self.is_silent, self.sockets = int(target), False, {}
        self.listener = socket.create_server(("localhost", 0))
        self.port = str(self.listener.getsockname()[1])
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            for ready in select.select([self.listener, *self.sockets], [], [])[0]:
                if self.is_silent:
                    return
                with contextlib.suppress(OSError):  # the host behind it is gone, or not up yet
                    if ready is self.listener:
                        self.connect(ready.accept()[0])
                    if ready not in self.sockets:  # the listener, or closed with the other one a moment ago
                        continue
                    if data := ready.recv(65536):
                        self.sockets[ready].sendall(data)
                        continue
                self.close(ready)

    def connect(self, here):
        try:
            there = socket.create_connection(("localhost", self.target))
        except OSError:
            here.close()
        else:
            self.sockets |= {here: there, there: here}

    def close(self, one):
        other = self.sockets.pop(one)
        del self.sockets[other]
        one.close()
        other.close()


@pytest.fixture
def run(tmp_path):
    processes = []

    def run(*arguments):
        processes.append(start(tmp_path, NODE, *arguments))
        return processes[-1]

    yield run
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def end(process):
    out, err = process.communicate()
    return process.returncode, out, err


def test_the_host_where_they_meet_is_killed_and_started_again(tmp_path, run):
    """The other host is connected through a proxy, so that it cannot become the meeting point itself."""
    where = port()
    first = run("a", where, 80, 120, 2)
    until(lambda: is_listening(where))
    proxy = Proxy(where)
    second = run("b", proxy.port, 80, 120, 2)
    wait_for_step(tmp_path, 5)
    worker = numbers(tmp_path, "pid-a-*")
    assert len(worker) == 1
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    until(lambda: not any(map(is_alive, worker)), seconds=60)
    again = run("a", where, 80, 120, 2)
    for process in (again, second):
        status, out, err = end(process)
        assert status == 0, err
        assert json.loads(out.splitlines()[-1]) == [[gold(80), True]] * 2
    assert f"restart 1 of 2: lost the connection to localhost:{proxy.port}, where the machines meet" in err


def test_without_restarts_a_lost_host_ends_the_other(tmp_path, run):
    where = port()
    first = run("a", where, 10**6, 120, 0)
    until(lambda: is_listening(where))
    second = run("b", Proxy(where).port, 10**6, 120, 0)
    wait_for_step(tmp_path, 2)
    os.kill(first.pid, signal.SIGKILL)
    status, _, err = end(second)
    assert status == 1
    assert "lost the connection to " in err.rstrip().splitlines()[-1]


def test_a_silent_meeting_point_ends_the_run_after_the_timeout_and_is_named(tmp_path, run):
    where = port()
    first = run("a", where, 10**6, 10, 3)
    until(lambda: is_listening(where))
    proxy = Proxy(where)
    second = run("b", proxy.port, 10**6, 10, 3)
    wait_for_step(tmp_path, 2)
    proxy.is_silent = True
    status, _, err = end(second)
    assert status == 1
    assert err.rstrip().splitlines()[-1] == (
        f"ConnectionError: lost the connection to localhost:{proxy.port}, where the machines meet, for 10 s. Check "
        "that machine and the network to it, and start the same program on each machine again"
    )
    status, _, err = end(first)
    assert status == 1
    assert err.rstrip().splitlines()[-1] == (
        "ConnectionError: lost the connection to another machine for 10 s. Check that machine and the network to it, "
        "and start the same program on each machine again"
    )
