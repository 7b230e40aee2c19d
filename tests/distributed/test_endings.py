"""How a launch ends that would otherwise wait: each time with a sentence that says what happened."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import wait

import pytest
import torch
from failing import failed, never
from fit_core import Runner
from fit_distributed import LaunchError, barrier, is_main, launch, parallel, rank, shard
from fit_distributed.meeting import Watch
from fit_distributed.signals import Signals
from processes import SERVER
from programs import environment, port, start, until
from torch import nn
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

pytestmark = pytest.mark.timeout(180)


def leave_quietly(ranks):
    if rank() in ranks:
        os._exit(0)
    barrier()


@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_a_process_that_exits_with_status_0_before_its_time_is_named(ranks):
    begin = time.monotonic()
    with pytest.raises(LaunchError) as caught:  # Not forked: the fork server would pass on the end of a process later.
        launch(leave_quietly, ranks, nproc=2, backend="gloo", timeout=120)
    first = caught.value.rank  # of those that end at the same moment
    assert first in ranks
    assert str(caught.value).endswith(
        f"rank {first} ended with exit code 0 before the function returned. Let it return, and do not call os._exit "
        "in it"
    )
    assert time.monotonic() - begin < 60


def test_a_process_that_is_killed_just_when_all_may_end_does_not_hang_the_launch(monkeypatch):
    look, watched = Watch.look, []

    def look_and_note(watch):
        look(watch)
        watched.extend(watch._processes)

    def is_done(context):
        if len(context._return_values) < context.nprocs or not watched:
            return False
        os.kill(context.pids()[1], signal.SIGKILL)
        until(lambda: wait(list(context._pc.sentinels), 0))
        return True

    monkeypatch.setattr("fit_distributed.meeting._STUCK", 1.0)
    monkeypatch.setattr(Watch, "look", look_and_note)
    monkeypatch.setattr(MultiprocessContext, "_is_done", is_done)
    error, _ = failed(rank, timeout=120)
    assert str(error).endswith("rank 1 was killed by signal 9 (out of memory?)")


@pytest.mark.parametrize("received", [0, signal.SIGTERM])
def test_after_a_signal_a_process_that_has_ended_does_not_end_those_that_save(received, monkeypatch):
    monkeypatch.setattr("fit_distributed.meeting._STUCK", 0.0)
    watch = Watch(Signals(), nproc=1, nnodes=1, timeout=60)
    watch.signals.received, watch.is_meeting = received, False
    process = SERVER.Process(target=time.sleep, args=(60,))
    process.start()
    watch._processes = [process]
    assert watch.stuck() is None
    process.kill()
    until(lambda: wait([process.sentinel], 0))
    assert (watch.stuck() is None) == bool(received)
    process.join()


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


def train_on_nothing(dataset):
    model = parallel(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Runner(model, optimizer, nn.MSELoss()).fit(shard(DataLoader(dataset, batch_size=2), pad=True))


@pytest.mark.parametrize("dataset", [TensorDataset(torch.zeros(0, 2), torch.zeros(0, 1)), Nothing()])
def test_an_empty_dataset_is_an_error_on_all_processes(dataset):
    error, seconds = failed(train_on_nothing, dataset, timeout=120)
    assert "ValueError: train_loader (DataLoader) yields no batches: its dataset is empty" in str(error)
    assert seconds < 60


def test_a_host_that_does_not_exist_is_named():
    with pytest.raises(ConnectionError, match=r"found no address of 'no-such-host\.invalid'"):
        launch(never, nproc=1, nnodes=2, rdzv="no-such-host.invalid:29400", timeout=2)


INPUT = """
from fit_distributed import launch, rank

def where():
    return rank()

if __name__ == "__main__":
    print(launch(where, nproc=2, backend="gloo", timeout=60))
"""


def test_a_script_on_standard_input_is_launched(tmp_path):
    pytest.importorskip("cloudpickle")
    result = subprocess.run(
        [sys.executable, "-"], input=INPUT, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False
    )
    assert result.stdout == "[0, 1]\n", result.stderr


def test_processes_of_mpirun_on_several_hosts_ask_where_to_meet(monkeypatch):
    for name, value in {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # launch adds to it
    with pytest.raises(RuntimeError, match="expected MASTER_ADDR and MASTER_PORT, where the 4 processes meet"):
        launch(never)


class Unequal(IterableDataset):
    """Without a len; rank 0 has fewer samples."""

    def __iter__(self):
        return iter([(torch.ones(2), torch.ones(1))] * (8 if rank() else 4))


def disagree(kind):
    model = parallel(nn.Linear(2, 1))
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    batches = [(torch.ones(2, 2), torch.ones(2, 1))] * 3
    if kind == "before" and is_main():
        runner.evaluate(batches)
    runner.fit(DataLoader(Unequal(), batch_size=2) if kind == "unequal" else batches)
    if kind == "after" and is_main():
        runner.evaluate(batches)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("before", "rank 0 at the end of the val loader, rank 1 at the start of fit. Make the same calls in the same"),
        ("after", "the end of the launched function"),
    ],
)
def test_work_on_rank_0_alone_is_named_at_once(kind, said):
    error, seconds = failed(disagree, kind, timeout=120)
    assert "Error: " in str(error)
    assert "at the end of the val loader" in str(error)
    assert said in str(error)
    assert seconds < 60


def test_loaders_of_unequal_length_without_a_len_are_named_with_where_each_process_waits():
    error, _ = failed(disagree, "unequal", timeout=4)
    assert "the processes waited for each other in different calls for 4 s" in str(error)
    for number in range(2):
        assert f"\n  rank {number}: test_endings.py, line " in str(error)


def lose_the_other():
    if rank() == 1:
        raise ValueError("boom")
    barrier()


NODE = """
import sys
from fit_distributed import launch
from test_endings import lose_the_other

if __name__ == "__main__":
    launch(lose_the_other, nproc=1, nnodes=2, rdzv=f"localhost:{sys.argv[1]}", backend="gloo", timeout=60)
"""


def test_a_machine_whose_peer_has_failed_does_not_show_its_own_lost_connection_as_the_reason(tmp_path):
    where = port()
    processes = [start(tmp_path, NODE, where) for _ in range(2)]
    errors = [process.communicate()[1].rstrip().splitlines() for process in processes]
    lost, failed = sorted((lines[-1] for lines in errors), key=lambda line: line.startswith("ValueError"))
    assert failed == "ValueError: boom"
    assert lost == (
        "ConnectionError: rank 0 lost the connection to another process, which failed or was killed first, on another "
        "machine if none here is named. Its own message says why"
    )
