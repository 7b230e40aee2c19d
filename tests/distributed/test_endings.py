"""How a launch ends that would otherwise wait: each time with a sentence that says what happened."""

import os
import subprocess
import sys

import pytest
import torch
from fit_core import Runner
from fit_distributed import barrier, launch, parallel, rank, shard
from test_launch import failed, never
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

pytestmark = pytest.mark.timeout(180)


def leave_quietly(ranks):
    if rank() in ranks:
        os._exit(0)
    barrier()


@pytest.mark.parametrize("ranks", [(1,), (0, 1)])
def test_d2_a_process_that_exits_with_status_0_before_its_time(ranks):
    error, seconds = failed(leave_quietly, ranks, timeout=120)
    assert error.rank == ranks[0]
    assert str(error).endswith(
        f"rank {ranks[0]} ended with exit code 0 before the function returned. Let it return, and do not call os._exit "
        "in it"
    )
    assert seconds < 60


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
    with pytest.raises(ConnectionError, match=r"the name 'no-such-host\.invalid' has no address"):
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
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-"], input=INPUT, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert result.stdout == "[0, 1]\n", result.stderr


def test_processes_of_mpirun_on_several_hosts_ask_where_to_meet(monkeypatch):
    for name, value in {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # launch adds to it
    with pytest.raises(RuntimeError, match="4 processes were started, but MASTER_ADDR and MASTER_PORT do not say"):
        launch(never)
