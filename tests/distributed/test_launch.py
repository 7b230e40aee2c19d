"""What launch returns, where it runs, what it refuses, and what it says of processes that fail."""

import functools
import multiprocessing
import os
import signal
import sys
import time
import warnings

import pytest
import torch
from fit_core import Callback, Runner
from fit_distributed import LaunchError, barrier, device, is_main, launch, local_rank, parallel, rank, world_size
from programs import port, start
from torch import nn

pytestmark = pytest.mark.timeout(180)


def place(greeting, *, to):
    print(f"{greeting} from {rank()}")
    os.write(2, f"{to} on {rank()}\n".encode())
    barrier()
    where = (rank(), world_size(), local_rank(), is_main(), str(device()), os.environ["OMP_NUM_THREADS"])
    return where, torch.full((3,), rank()), torch.distributed.get_backend()


def test_every_value_comes_back_by_rank_and_every_rank_prints_into_its_file(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)]
    environment = dict(os.environ)
    values = launch(place, "hello", to="all", nproc=2, backend="gloo", log_dir=tmp_path / "logs", timeout=60)
    for number, (where, tensor, backend) in enumerate(values):
        assert where == (number, 2, number, number == 0, str(device()), "3")
        assert torch.equal(tensor, torch.full((3,), number))
        assert backend == "gloo"
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


# How a launch fails.


class Fail(Callback):
    """Does `deed()` on one rank at a place in the run."""

    def __init__(self, place, guilty, deed):
        self.place, self.guilty, self.deed = place, guilty, deed

    def on_batch_end(self, state):
        if self.place == ("training" if state.is_train else "validation"):
            self._fail(state)

    def on_epoch_end(self, state):
        if self.place == "callback":
            self._fail(state)

    def on_checkpoint(self, state):
        if self.place == "save":
            self._fail(state)

    def _fail(self, state):
        if state.rank == self.guilty and state.batch_idx >= 1:
            self.deed()


def boom():
    raise ValueError("boom")


def train(place, guilty, deed):
    torch.manual_seed(0)
    model = parallel(nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(3)]
    Runner(model, optimizer, nn.MSELoss(), callbacks=[Fail(place, guilty, deed)]).fit(batches, val_loader=batches)
    return "done"


def failed(*arguments, **options):
    begin = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        launch(*arguments, nproc=2, backend="gloo", **options)
    assert not multiprocessing.active_children()
    return caught.value, time.monotonic() - begin


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
from test_launch import boom, train

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
    assert str(error).endswith("RuntimeError: the function called sys.exit(4): let it return instead")


@pytest.mark.parametrize("place", ["training", "save"])
def test_a_rank_that_sleeps_is_named_after_the_timeout(place):
    error, seconds = failed(train, place, 1, sleep_for_ever, timeout=4)
    assert "\nTimeoutError: rank 1 did not come within 4 s to where rank 0 waited: test_launch.py, line " in str(error)
    assert seconds < 60


# What is refused before anything starts.


def never():
    raise AssertionError("it was started")


def takes(timeout, rdzv=None):
    raise AssertionError("it was started")


def nested():
    return launch(never, nproc=2, backend="gloo")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"nproc": 0}, ValueError, 'nproc must be "auto" or a whole number, 1 or more, got 0'),
        ({"nproc": -2}, ValueError, "got -2"),
        ({"nproc": 2.0}, ValueError, "got 2.0"),
        ({"nproc": True}, ValueError, "got True"),
        ({"nproc": "all"}, ValueError, "got 'all'"),
        ({"nnodes": 0}, ValueError, "nnodes must be a whole number, 1 or more, got 0"),
        ({"max_restarts": -1}, ValueError, "max_restarts must be a whole number, 0 or more, got -1"),
        ({"timeout": 0}, ValueError, "timeout must be a finite number of seconds above 0, got 0"),
        ({"timeout": float("inf")}, ValueError, "timeout must be a finite number of seconds above 0, got inf"),
        ({"timeout": "60"}, ValueError, "timeout must be a finite number of seconds above 0, got '60'"),
        ({"backend": 3}, TypeError, "backend must be a string or None, got 3"),
        ({"rdzv": 3}, TypeError, "rdzv must be a string or None, got 3"),
        ({"nnodes": 2}, ValueError, 'pass nnodes=2, rdzv="host:port", the same on each machine'),
        ({"rdzv": "host:29400"}, ValueError, "got nnodes=1, rdzv='host:29400'"),
        ({"nnodes": 2, "rdzv": "host"}, ValueError, "got nnodes=2, rdzv='host'"),
        ({"backend": "carrier pigeon"}, ValueError, "backend 'carrier pigeon' is not in this build of torch"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_starts(arguments, error, said):
    with pytest.raises(error) as caught:
        launch(never, **arguments)
    assert said in str(caught.value)


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="nproc is 3, but this machine has 2 accelerators: pass at most that"):
        launch(never, nproc=3)


def test_a_nested_launch_is_refused_in_one_process_and_in_two():
    with pytest.raises(RuntimeError, match="launch was called by a function that runs in a launch"):
        launch(nested, nproc=1)
    error, _ = failed(nested)
    assert "RuntimeError: launch was called by a function that runs in a launch: call the inner function" in str(error)


def test_what_is_no_function_and_a_parameter_of_launch_itself_are_refused():
    with pytest.raises(TypeError, match=r"fn must be a function, got NoneType: launch\(train, ...\)"):
        launch(None)
    with pytest.raises(TypeError, match="takes has parameters which are launch's own too: rdzv, timeout"):
        launch(takes, 3)
    with pytest.raises(AssertionError, match="it was started"):
        launch(functools.partial(takes, timeout=3, rdzv=None))


def test_machines_that_do_not_meet_are_told_so():
    with pytest.raises(ConnectionError, match=r"the 2 machines did not meet at localhost:\d+ within 2 s \(Rendez"):
        launch(never, nproc=1, nnodes=2, rdzv=f"localhost:{port()}", timeout=2)


UNGUARDED = """
from fit_distributed import launch
from test_launch import never

launch(never, nproc=2, backend="gloo")
"""


def test_a_script_without_a_main_guard_says_so(tmp_path):
    process = start(tmp_path, UNGUARDED)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "put the call below 'if __name__ == \"__main__\":'" in err


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
    assert str(caught.value).endswith("pass it what can be pickled, or pip install cloudpickle")


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


def stubborn():
    return (item for item in "generators cannot be pickled")


def test_a_value_that_cannot_be_sent_back_is_named():
    error, _ = failed(stubborn, timeout=60)
    assert "TypeError: the function returned a generator that cannot be sent back" in str(error)


def test_several_processes_without_a_group_are_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="there are 2 processes, but no process group"):
        parallel(nn.Linear(2, 1))


def test_parallel_moves_the_model_and_leaves_it_bare_in_one_process():
    model = nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parallel(model, sync_bn=True) is model
    assert model.weight.device == device()
