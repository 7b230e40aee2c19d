"""launch returns the results of all processes, runs in place where it should, and refuses wrong arguments."""

import ctypes
import functools
import multiprocessing
import os
import signal
import warnings

import pytest
import torch
from failing import failed, never, place
from fit_distributed import barrier, device, is_main, launch, parallel, rank, world_size
from fit_distributed.pickling import dump_value
from processes import in_a_process
from programs import port, start
from torch import nn

pytestmark = pytest.mark.timeout(180)


def test_every_value_comes_back_by_rank_and_every_rank_prints_into_its_file(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    environment = dict(os.environ)
    values = launch(place, "hello", to="all", nproc=2, backend="gloo", log_dir=tmp_path / "logs", timeout=60)
    for number, (where, tensor, backend, start_method) in enumerate(values):
        assert where == (number, 2, number, number == 0, str(device()), "3")
        assert torch.equal(tensor, torch.full((3,), number))
        assert backend == "gloo"
        assert start_method == multiprocessing.get_start_method()  # of loader workers
        log = (tmp_path / "logs" / f"rank{number}.log").read_text()
        assert f"hello from {number}\n" in log
    assert "all on 1\n" in (tmp_path / "logs" / "rank1.log").read_text()  # also what does not pass through Python
    out, err = capfd.readouterr()
    assert out == "hello from 0\n"
    assert "all on 0" in err
    assert "all on 1" not in err
    assert os.environ == environment
    assert handlers == [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    ]


def alone():
    return os.getpid(), torch.distributed.is_initialized(), rank(), world_size(), is_main(), barrier()


def test_one_process_runs_in_place_without_a_group():
    assert launch(alone, nproc=1) == [(os.getpid(), False, 0, 1, True, None)]
    if not torch.accelerator.is_available():
        assert launch(alone) == launch(alone, nproc=1)


def launch_two():
    return launch(rank, nproc=2, backend="gloo", timeout=60)


def test_a_child_of_multiprocessing_can_launch():
    assert in_a_process(launch_two) == [0, 1]


def takes(timeout, rdzv=None):
    raise AssertionError("it was started")


def nested():
    return launch(never, nproc=2, backend="gloo")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"nproc": 0}, ValueError, 'expected nproc to be "auto" or a whole number, 1 or more, got 0'),
        ({"nproc": -2}, ValueError, "got -2"),
        ({"nproc": 2.0}, ValueError, "got 2.0"),
        ({"nproc": True}, ValueError, "got True"),
        ({"nproc": "all"}, ValueError, "got 'all'"),
        ({"nnodes": 0}, ValueError, "expected nnodes to be a whole number, 1 or more, got 0"),
        ({"max_restarts": -1}, ValueError, "expected max_restarts to be a whole number, 0 or more, got -1"),
        ({"timeout": 0}, ValueError, "expected timeout to be a finite number of seconds above 0, got 0"),
        ({"timeout": float("inf")}, ValueError, "expected timeout to be a finite number of seconds above 0, got inf"),
        ({"timeout": "60"}, ValueError, "expected timeout to be a finite number of seconds above 0, got '60'"),
        ({"backend": 3}, TypeError, "expected backend to be a string or None, got 3"),
        ({"rdzv": 3}, TypeError, "expected rdzv to be a string or None, got 3"),
        ({"nnodes": 2}, ValueError, 'Pass nnodes=2, rdzv="host:port", the same on each machine'),
        ({"rdzv": "host:29400"}, ValueError, "got nnodes=1, rdzv='host:29400'"),
        ({"nnodes": 2, "rdzv": "host"}, ValueError, "got nnodes=2, rdzv='host'"),
        ({"backend": "carrier pigeon"}, ValueError, "a backend of this build of torch, got 'carrier pigeon'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_starts(arguments, error, said):
    with pytest.raises(error) as caught:
        launch(never, **arguments)
    assert said in str(caught.value)


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="nproc to be at most the 2 accelerators of this machine, got 3"):
        launch(never, nproc=3)


def test_a_nested_launch_is_refused_in_one_process_and_in_two():
    with pytest.raises(RuntimeError, match="expected one launch, got one inside another"):
        launch(nested, nproc=1)
    error, _ = failed(nested)
    assert "RuntimeError: expected one launch, got one inside another. Call the inner function" in str(error)


def test_what_is_no_function_and_a_parameter_of_launch_itself_are_refused():
    with pytest.raises(TypeError, match=r"expected fn to be a function, got NoneType. Write launch\(train, ...\)"):
        launch(None)
    with pytest.raises(TypeError, match="takes to have other parameters than launch, got rdzv, timeout"):
        launch(takes, 3)
    with pytest.raises(AssertionError, match="it was started"):
        launch(functools.partial(takes, timeout=3, rdzv=None))


def test_machines_that_do_not_meet_are_told_so():
    with pytest.raises(ConnectionError, match=r"the 2 machines did not meet at localhost:\d+ within 2 s \(Rendez"):
        launch(never, nproc=1, nnodes=2, rdzv=f"localhost:{port()}", timeout=2)


UNGUARDED = """
from fit_distributed import launch
from failing import never

launch(never, nproc=2, backend="gloo")
"""


def test_a_script_without_a_main_guard_says_so(tmp_path):
    process = start(tmp_path, UNGUARDED)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Put it below 'if __name__ == \"__main__\":'" in err


# Functions without a name to import them by.


def test_closures_and_lambdas_work_with_cloudpickle_also_after_threads_were_used():
    pytest.importorskip("cloudpickle")
    factor = torch.tensor(3.0)

    class Local:
        def __init__(self, value):
            self.value = value

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(300, 300, requires_grad=True).square().sum().backward()
    values = launch(lambda: Local(float(factor) * rank()), nproc=2, backend="gloo", timeout=60)
    torch.set_num_threads(threads)
    assert [type(value) for value in values] == [Local, Local]
    assert [value.value for value in values] == [0.0, 3.0]


def test_without_cloudpickle_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("fit_distributed.pickling._cloudpickle", lambda: None)
    with pytest.raises(TypeError) as caught:
        launch(lambda: 3, nproc=2, backend="gloo")
    assert "launch cannot send test_without" in str(caught.value)
    assert str(caught.value).endswith("pass arguments that can be pickled, or pip install cloudpickle")


@pytest.mark.parametrize("name", ["a pointer", "a deep list"])
def test_arguments_and_results_that_pickle_refuses_with_another_error(name):
    value = ctypes.pointer(ctypes.c_int(3)) if name == "a pointer" else []
    for _ in range(100_000 * (name == "a deep list")):
        value = [value]
    with pytest.raises(TypeError, match="launch cannot send print and its arguments to other processes"):
        launch(print, value, nproc=2)
    with pytest.raises(TypeError, match="expected a result that can be sent back"):
        dump_value(value)


CELL = """
import sys
from fit_distributed import launch, rank
code = '''
base = 40
class Result:
    def __init__(self, value):
        self.value = value
def cell(x):
    return Result(base + x + rank())
values = launch(cell, 2, nproc=2, backend="gloo", timeout=60)
print([type(value) is Result for value in values], [value.value for value in values])
'''
if __name__ == "__main__":
    del sys.modules["__main__"].__file__  # as in a kernel
    exec(code, globals())
"""


def test_a_cell_of_a_notebook_works(tmp_path):
    pytest.importorskip("cloudpickle")
    process = start(tmp_path, CELL)
    out, err = process.communicate()
    assert out == "[True, True] [42, 43]\n", err


def test_several_processes_without_a_group_are_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="expected a process group for 2 processes"):
        parallel(nn.Linear(2, 1))


def test_parallel_moves_the_model_and_leaves_it_bare_in_one_process():
    model = nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parallel(model, sync_bn=True) is model
    assert model.weight.device == device()
