"""A sharded run is saved by all processes, and resumed on any number of them."""

import warnings
from functools import partial

import pytest
import sharded_crash
import torch
from fit_callbacks import CheckpointSaver, GradientClipping, ModelEma
from fit_core import Callback
from processes import in_a_process, on_two_processes
from sharded import loaders, needs_cpu_shards, network, plain_network, runner, samples, weights
from torch import nn
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.timeout(500), needs_cpu_shards]


class StopAfter(Callback):
    def __init__(self, batches):
        self.left = batches

    def on_batch_end(self, state):
        self.left -= state.is_train
        if self.left == 0:
            state.should_stop = True


def train(folder, *callbacks, resume="auto", accumulate_steps=1, epochs=3, model=None, **options):
    if model is None:
        torch.manual_seed(3)
        model = network()
        model.insert(1, nn.Dropout(0.3))
        model.append(nn.BatchNorm1d(3, affine=False).double())
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    ema = ModelEma(0.9)
    saver = CheckpointSaver(folder, resume=resume, every_steps=1, **options)
    run = runner(model, ema, GradientClipping(0.5), saver, *callbacks, accumulate_steps=accumulate_steps)
    train_loader, val_loader = loaders()
    torch.manual_seed(torch.initial_seed() + 7)
    history = run.fit(train_loader, epochs=epochs, val_loader=val_loader)
    return run, ema, history


def everything(run, ema, history):
    state = run.state.optimizer.state_dict()["state"]
    momenta = {f"momentum {number}": part["momentum_buffer"] for number, part in state.items()}
    buffers = dict(run.state.model.named_buffers())
    full = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in momenta.items()}
    return {
        **weights(run.state.model),
        **{f"average {k}": v for k, v in weights(ema.model).items()},
        **full,
        **buffers,
    }, [dict(row) for row in history]


def same(one, other):
    (values, rows), (other_values, other_rows) = one, other
    return rows == other_rows and all(torch.equal(value, other_values[name]) for name, value in values.items())


def resumed(rank, folder, batches, **options):
    """Stop after some batches, resume with other weights and another seed, and compare with an undisturbed run."""
    gold = everything(*train(folder / "gold", **options))
    train(folder / "again", StopAfter(batches), **options)
    again = everything(*train(folder / "again", **options))
    return same(gold, again)


RESUMED = {
    "epoch": {"batches": 6},
    "inside": {"batches": 8},
    "window": {"batches": 7, "accumulate_steps": 4},
    "background": {"batches": 8, "background": True},
}


@pytest.mark.parametrize("name", RESUMED)
def test_the_same_number_of_processes_resumes_bit_for_bit(ranks, name):
    assert ranks[name] == (True, True)


def rewrapped(rank, folder):
    """Stop a sharded run inside a window, and resume it in DistributedDataParallel."""

    def run(name, *callbacks, model):
        made = runner(model, CheckpointSaver(folder / name, resume="auto"), *callbacks, accumulate_steps=4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.fit(loaders()[0], epochs=2)
        return weights(made.state.model), [str(warning.message) for warning in caught]

    gold, _ = run("gold", model=network())
    run("again", StopAfter(5), model=network())
    again, said = run("again", model=nn.parallel.DistributedDataParallel(plain_network()))
    bare = {name.removeprefix("module."): value for name, value in again.items()}
    return max(float((value - bare[name]).abs().max()) for name, value in gold.items()), said


def test_a_run_that_is_no_longer_sharded_repeats_the_open_window(ranks):
    for difference, said in ranks["rewrapped"]:
        assert difference < 1e-12
        assert any("sharded True -> False" in message for message in said)


def tensor_parallel(rank, folder):
    """Two processes with parts of the same layers and the same data."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def run(name, epochs, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
        made = runner(model, CheckpointSaver(folder / name, resume="auto"))
        made.fit(DataLoader(samples(), batch_size=8), epochs=epochs)
        return weights(made.state.model)

    gold = run("gold", 3, 0)
    run("again", 2, 0)
    again = run("again", 3, 1)
    return all(torch.equal(value, again[name]) for name, value in gold.items())


def test_a_tensor_parallel_run_resumes_bit_for_bit(ranks):
    assert ranks["tensor parallel"] == (True, True)


def test_a_kill_while_shards_are_written_leaves_a_whole_checkpoint(tmp_path):
    result = in_a_process(sharded_crash.killed_while_saving, tmp_path)
    assert result["steps"] == sorted(result["steps"])  # A resume never fell behind what was there.
    assert result["steps"][-1] > 0
    assert result["left"] <= 5  # Those that no checkpoint uses are removed by the next save.


def test_another_number_of_processes_resumes_with_the_same_weights_and_optimizer(tmp_path):
    results = in_a_process(sharded_crash.other_processes, tmp_path)
    assert results.pop("whole") == (["0.bias", "0.weight", "2.bias", "2.weight"], [(15, 6), (15,), (3, 15), (3,)])
    assert results.pop("whole on 1") is results.pop("whole on 2") is True
    assert results.keys() == {"4-2", "2-4", "2-1", "1-2"}
    for name, result in results.items():
        before, after = name.split("-")
        assert result["exact"], name
        assert f"processes {before} -> {after}" in result["said"][0]


def test_hybrid_shards_equal_one_process_and_resume_bit_for_bit(tmp_path):
    result = in_a_process(sharded_crash.hybrid, tmp_path)
    assert result["difference"] < 1e-12
    assert result["same"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder):
    """The results of both ranks, by case."""
    cases = {name: partial(resumed, folder=folder / name, **options) for name, options in RESUMED.items()}
    others = {"rewrapped": rewrapped, "tensor parallel": tensor_parallel}
    cases |= {name: partial(case, folder=folder / name) for name, case in others.items()}
    return on_two_processes(cases, folder)
