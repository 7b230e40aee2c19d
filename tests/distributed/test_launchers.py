"""The same file under python, torchrun, torch.distributed.launch, srun and in a group that exists, and on two nodes."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from programs import is_alive, numbers, port, start, until

pytestmark = pytest.mark.timeout(300)

SCRIPT = """
import json, os, sys
import torch
from fit_distributed import is_main, launch, local_rank, parallel, rank, world_size

def train(offset):
    model = parallel(torch.nn.Linear(2, 1))
    return rank() + offset, world_size(), local_rank(), type(model).__mro__[1].__name__

if __name__ == "__main__":
    if "EXISTING" in os.environ:
        torch.distributed.init_process_group("gloo", init_method="env://")
    values = launch(train, 10, nproc=2, backend="gloo", timeout=60)
    if is_main():
        with open("values", "w") as file:
            json.dump(values, file)
    if "EXISTING" in os.environ:
        torch.distributed.barrier()
    assert torch.distributed.is_initialized() == ("EXISTING" in os.environ)
    # DDP keeps the threads of gloo alive, and a script of plain torch too then sometimes aborts as it ends (2.13).
    os._exit(0)
"""

EXPECTED = [[10, 2, 0, "DistributedDataParallel"], [11, 2, 1, "DistributedDataParallel"]]


def environments(kind):
    """Return the environment of each of two processes."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port()}
    for number in map(str, range(2)):
        torchrun = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", **address}
        slurm = {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost"}
        slurm |= {"SLURM_JOB_ID": str(int(address["MASTER_PORT"]) % 10000), "SLURM_STEP_ID": "0"}
        mpi = {"OMPI_COMM_WORLD_RANK": number, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": number}
        mpi |= {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": address["MASTER_PORT"]}
        yield {
            "mpirun": mpi,
            "srun": slurm,
            "srun with an address": slurm | address,
            "existing": torchrun | {"EXISTING": "1"},
        }[kind]


@pytest.mark.parametrize("module", ["", "torch.distributed.run", "torch.distributed.launch"])
def test_one_file_runs_alone_and_under_the_launchers_of_torch(tmp_path, module):
    options = ["-m", module, "--nproc-per-node=2", f"--master-port={port()}"] if module else []
    process = start(tmp_path, SCRIPT, module=options)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads((tmp_path / "values").read_text()) == EXPECTED


@pytest.mark.parametrize("kind", ["mpirun", "srun", "srun with an address", "existing"])
def test_one_file_runs_where_the_processes_are_there_already(tmp_path, kind):
    processes = [start(tmp_path, SCRIPT, **environment) for environment in environments(kind)]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert json.loads((tmp_path / "values").read_text()) == EXPECTED


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, {}),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, {}),  # the script of sbatch itself
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, {}),  # a shell of salloc
        ({"RANK": "3"}, {}),
        (
            {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODELIST": "gpu[03-05,9]-ib,cpu1"}
            | {"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "0"},
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu03-ib", "MASTER_PORT": "24567"},
        ),
        (  # another step of that job, at the same time
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "1"},
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "25576"},
        ),
        # the interactive step of salloc
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": str(2**32 - 6)}, {}),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, {}),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}),  # on several hosts
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7", "MPI_LOCALRANKID": "1"},
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
        ),
        ({"RANK": "2", "WORLD_SIZE": "3", "SLURM_PROCID": "9"}, {"RANK": "2", "WORLD_SIZE": "3"}),
    ],
)
def test_what_launchers_tell_is_read_when_asked(monkeypatch, variables, place):
    from fit_distributed import rank, world_size
    from fit_distributed.environment import launcher_variables

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launcher_variables() == place
    assert (rank(), world_size()) == (int(place.get("RANK", 0)), int(place.get("WORLD_SIZE", 1)))


@pytest.mark.parametrize(
    ("hosts", "first"), [("a", "a"), ("a1,b", "a1"), ("n[1-3]", "n1"), ("n[07,9]x", "n07x"), ("a-1,n[1-2]", "a-1")]
)
def test_the_first_host_of_a_slurm_list(hosts, first):
    from fit_distributed.environment import _first_host

    assert _first_host(hosts) == first


TASK = """
import os, subprocess, sys
with open("/proc/self/comm", "w") as file:
    file.write("slurmstepd")
sys.exit(subprocess.run(sys.argv[1:], start_new_session=True, stdin=subprocess.DEVNULL).returncode)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="SLURM's processes are found in /proc")
@pytest.mark.parametrize(
    ("command", "task", "size"),
    [
        ('exec "$0" size.py', "0", "4"),  # srun --pty python train.py
        ('"$0" size.py; true', "0", "4"),  # the same in a script
        ('set -m; "$0" size.py; true', "0", "1"),  # typed in a shell of srun --pty, which has job control
        ('set -m; sh -c "$0 size.py; true"; true', "0", "1"),  # a script, typed there
        ('set -m; "$0" size.py; true', "1", "4"),  # another task, which does not have the terminal
    ],
)
def test_a_shell_of_srun_pty_is_not_taken_for_a_worker(tmp_path, command, task, size):
    (tmp_path / "size.py").write_text("from fit_distributed import world_size\nprint(world_size())")
    variables = {"SLURM_PROCID": task, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "1"}
    process = start(tmp_path, TASK, "bash", "-c", command, sys.executable, **variables)
    out, err = process.communicate()
    assert (process.returncode, out.strip()) == (0, size), err


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_meet_say_where_they_waited(tmp_path, rank):
    code = "from fit_distributed import launch\nlaunch(print, timeout=2)"
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port()}
    process = start(tmp_path, code, RANK=rank, WORLD_SIZE="2", **address)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.rstrip().splitlines()[-1] == (
        f"ConnectionError: expected 2 processes to meet at localhost:{address['MASTER_PORT']}, got a timeout on rank "
        f"{rank} after 2 s. Check that all were started. If a host does not reach that address, set MASTER_ADDR and "
        "MASTER_PORT to one that all reach"
    )


def test_a_process_of_a_launcher_that_lost_another_one_says_so(tmp_path):
    code = """
import sys, torch
from fit_distributed import launch, rank

def train():
    torch.distributed.barrier()
    if rank() == 1:
        sys.exit("a fault")
    torch.distributed.barrier()

launch(train, timeout=60)
"""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port()}
    first, second = (start(tmp_path, code, RANK=rank, WORLD_SIZE="2", **address) for rank in "01")
    assert second.communicate()[1].rstrip().endswith("a fault")
    assert (
        first.communicate()[1]
        .rstrip()
        .endswith(
            "ConnectionError: rank 0 lost the connection to another process, which failed or was killed first. Its own "
            "message says why"
        )
    )


def test_a_port_that_is_in_use_is_named(tmp_path):
    code = "from fit_distributed import launch\nlaunch(print, timeout=60)"
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        where = str(taken.getsockname()[1])
        process = start(tmp_path, code, RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=where)
        _, err = process.communicate()
    assert err.rstrip().splitlines()[-1] == (
        f"ConnectionError: expected a free port for the 2 processes to meet, got localhost:{where}, which is in use. "
        "Set MASTER_PORT to another one, the same for every process"
    )


NODE = """
import json, os, pathlib, sys, time
import torch
from fit_distributed import launch, rank, world_size

def train(node):
    path = pathlib.Path("step")
    first = int(path.read_text()) if path.exists() else 0
    steps = [first]
    torch.distributed.broadcast_object_list(steps, src=0)
    pathlib.Path(f"pid-{node}-{rank()}").write_text(f"{os.getpid()}\\n")
    for step in range(steps[0], 60):
        count = torch.ones(())
        torch.distributed.all_reduce(count)
        if rank() == 0:
            pathlib.Path("step.part").write_text(str(step + 1))
            os.replace("step.part", "step")
        time.sleep(0.05)  # long enough to be killed in the middle
    return rank(), world_size(), int(count), steps[0] > 0

if __name__ == "__main__":
    node, port = sys.argv[1:]
    nodes = {"nnodes": 2, "rdzv": f"localhost:{port}", "max_restarts": 3}
    values = launch(train, node, nproc=2, backend="gloo", timeout=120, **nodes)
    print(json.dumps(values))
"""


def test_two_nodes_of_which_one_is_killed_and_brought_back(tmp_path):
    where = port()
    first = start(tmp_path, NODE, "a", where)
    # The node that is killed is not the one where they meet, which has to be up first.
    until(lambda: socket.socket().connect_ex(("localhost", int(where))) == 0)
    second = start(tmp_path, NODE, "b", where)
    until(lambda: (step := Path(tmp_path / "step")).exists() and int(step.read_text()) >= 5)
    workers = numbers(tmp_path, "pid-b-*")
    assert len(workers) == 2
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    until(lambda: not any(map(is_alive, workers)), seconds=10)
    again = start(tmp_path, NODE, "b", where)
    for process in (first, again):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out.splitlines()[-1]) == [[number, 4, 4, True] for number in range(4)]
