"""Checks that a callback or a metric keeps the protocol of fit-core. Copy this file beside your tests.

A check is a function of a case and a folder. It makes small, seeded runs on the CPU, and an ``assert`` in it fails. In
a test file of pytest::

    CASE = CallbackCase(lambda folder: [MyCallback(folder / "log.txt")])


    @pytest.mark.parametrize("check", CALLBACK_CHECKS)
    def test_my_callback(check, tmp_path):
        check(CASE, tmp_path)

The same with :class:`MetricCase` and ``METRIC_CHECKS``. For two processes see :func:`in_two_processes`.
"""

import contextlib
import inspect
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from fit_core import HOOKS, Callback, Metric, Runner
from torch import nn


def network():
    """A small network with all that makes exact resume hard: statistics of batches, and random numbers."""
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def vectors(seed):
    """Batches of 3 classes. The last is short."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (8, 8, 8, 8, 5)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


@dataclass(frozen=True)
class CallbackCase:
    """A callback, and what it is tried on.

    Attributes:
        make: new callbacks that may write into a folder: the one to check, after others that it needs.
        network: a new model.
        batches: five batches of (input, target) or more, of a seed.
        metrics: new metrics, when the callback looks at some.
        clock: names of results that a clock has told, which no two runs have alike.
        ddp_options: options of DistributedDataParallel in two processes, if the callback needs some.
    """

    make: Callable[[Path], list[Callback]]
    network: Callable[[], nn.Module] = network
    batches: Callable[[int], list[Any]] = vectors
    metrics: Callable[[], list[Any]] = list
    clock: tuple[str, ...] = ()
    ddp_options: dict[str, Any] = field(default_factory=dict)

    def runner(self, callbacks, model=None, **options):
        torch.manual_seed(0)
        model = model or self.network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return Runner(model, optimizer, nn.CrossEntropyLoss(), self.metrics(), callbacks, **options)

    def facts(self, state):
        """What two runs must have alike, to the bit."""
        saved = {name: value for name, value in state.state_dict().items() if name != "settings"}
        for row in (saved["logs"], *saved["history"]):
            for name in self.clock:
                row.pop(name, None)
        return flat(saved)


def check_hooks(case, folder):
    """Each method that is called ``on_...`` is a hook, and takes the state alone."""
    for callback in case.make(folder):
        assert isinstance(callback, Callback)
        methods = inspect.getmembers(callback, inspect.ismethod)
        for name, method in [one for one in methods if one[0].startswith("on_")]:
            assert name in HOOKS, f"{name} is no hook"
            assert len(inspect.signature(method).parameters) == 1, f"{name} takes the state and nothing else"


def check_training(case, folder):
    """A run ends, in each precision and with accumulation, and so does a second one with the same callback."""
    for number, options in enumerate(
        [{}, {"accumulate_steps": 3}, {"use_bf16": True}, {"use_fp16": True}, {"accumulate_steps": 3, "use_bf16": True}]
    ):
        runner = case.runner(case.make(folder / str(number)), **options)
        for _ in range(2):
            history = runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
            assert len(history) == 2 or runner.state.should_stop, f"the run ended by itself with {options}"
            weights = list(runner.state.model.parameters())
            assert all(one.isfinite().all() for one in weights), f"weights are not finite with {options}"


def check_evaluation(case, folder):
    """``evaluate`` and ``predict`` give without a run what they give without the callback, and work after one."""
    plain, runner = case.runner([]), case.runner(case.make(folder))
    batches = case.batches(1)
    assert flat(runner.evaluate(batches)) == flat(plain.evaluate(batches)), "evaluate differs"
    assert flat(runner.predict(batches)) == flat(plain.predict(batches)), "predict differs"
    runner.fit(case.batches(0), epochs=2, val_loader=batches)
    assert flat(runner.evaluate(batches)) == flat(runner.evaluate(batches))
    assert flat(runner.predict(batches)) == flat(runner.predict(batches))


class Snapshots(Callback):
    """Keeps the state wherever it is exact, as the bytes of a file that plain torch can read."""

    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        self.saved.append(io.BytesIO())
        torch.save(state.state_dict(), self.saved[-1])

    def load(self, number):
        self.saved[number].seek(0)
        return torch.load(self.saved[number], weights_only=True)


class AtFirst(Callback):
    """Notes what callbacks remember at the beginning of a run."""

    def on_epoch_begin(self, state):
        if not hasattr(self, "memories"):
            self.memories = flat(state.state_dict()["callbacks"])


def check_state(case, folder):
    """What the callback remembers is the same after it went through a file and into a new one."""
    snapshots = Snapshots()
    case.runner([*case.make(folder / "one"), snapshots]).fit(case.batches(0), epochs=2, val_loader=case.batches(1))
    for number in {2, len(snapshots.saved) - 2}:
        first = AtFirst()
        runner = case.runner([first, *case.make(folder / str(number))])
        saved = snapshots.load(number)
        runner.state.load_state_dict(saved)
        runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
        assert first.memories == flat(saved["callbacks"]), "what was loaded is not what was saved"


def check_resume(case, folder):
    """A run that is stopped and goes on in new objects ends with the same bits as one that was not stopped.

    It is stopped inside an accumulation window, inside an epoch, and between two epochs.
    """

    def run(folder, saved=None):
        snapshots = Snapshots()
        runner = case.runner([*case.make(folder), snapshots], accumulate_steps=2)
        torch.manual_seed(7 if saved else 0)  # the generator of a new process stands anywhere
        if saved:
            runner.state.load_state_dict(saved)
        runner.fit(case.batches(0), epochs=3, val_loader=case.batches(1))
        return case.facts(runner.state), snapshots

    gold, snapshots = run(folder / "gold")
    for number in (0, 3, 5, 8):
        if number < len(snapshots.saved):
            resumed, _ = run(folder / str(number), snapshots.load(number))
            assert resumed == gold, f"stopped after checkpoint {number}"


CALLBACK_CHECKS = [check_hooks, check_training, check_evaluation, check_state, check_resume]


@dataclass(frozen=True)
class MetricCase:
    """A metric, and samples for it.

    Attributes:
        make: a new metric.
        output: what a model returns for 40 samples, a tensor.
        target: their targets.
    """

    make: Callable[[], Metric]
    output: torch.Tensor
    target: torch.Tensor

    def batches(self, *sizes):
        assert len(self.output) == len(self.target) == 40
        return list(zip(self.output.split(sizes), self.target.split(sizes), strict=True))

    def fed(self, *batches):
        metric = self.make()
        metric.reset()
        for output, target in batches:
            metric.update(output, target)
        return metric

    def whole(self):
        return self.fed((self.output, self.target)).compute()

    def runner(self, *callbacks):
        model = Scale()
        metric = self.make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        return Runner(model, optimizer, lambda output, target: output.mean(), [metric], callbacks), metric


class Scale(nn.Module):
    """A model whose output is its input, at first."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input):
        return input * self.scale


def check_split(case, folder):
    """Batches of other sizes, a short last one too, give the same value."""
    close(case.fed(*case.batches(7, 7, 7, 7, 7, 5)).compute(), case.whole())
    close(case.fed(*case.batches(1, 39)).compute(), case.whole())


def check_reset(case, folder):
    """``reset`` forgets, ``compute`` does not; without any samples there is a value too, as a number or nan."""
    metric = case.fed(*case.batches(25, 15))
    close(metric.compute(), case.whole())
    close(metric.compute(), case.whole())
    metric.reset()
    close(metric.compute(), case.fed().compute())
    metric.update(case.output, case.target)
    close(metric.compute(), case.whole())


def check_metric_state(case, folder):
    """A state that went through a file goes on in a new metric, and was a copy."""
    first, second = case.batches(25, 15)
    metric, file = case.fed(first), io.BytesIO()
    state = metric.state_dict()
    metric.update(*second)
    torch.save(state, file)
    file.seek(0)
    other = case.fed()
    other.load_state_dict(torch.load(file, weights_only=True))
    other.update(*second)
    close(other.compute(), case.whole())


def check_device(case, folder):
    """``to`` moves the metric, and ``update`` asks for no value: on the device meta there are none."""
    metric = case.make()
    metric.to(torch.device("meta"))
    metric.reset()
    for _ in range(2):
        metric.update(case.output.to("meta"), case.target.to("meta"))


def check_logs(case, folder):
    """The Runner logs the value under the metric's name; a tensor of several values is not logged."""
    runner, metric = case.runner()
    logs = runner.evaluate(case.batches(16, 16, 8))
    value = case.whole()
    if torch.as_tensor(value).numel() == 1:
        close(logs[f"val/{metric.name}"], float(value))
    else:
        assert list(logs) == ["val/loss"]
        close(metric.compute(), value)


def check_metric_resume(case, folder):
    """A run that is stopped in an epoch has the same bits in its history as one that was not."""

    def run(saved=None):
        snapshots = Snapshots()
        runner, metric = case.runner(snapshots)
        if saved:
            runner.state.load_state_dict(saved)
        runner.fit(case.batches(16, 16, 8), epochs=2, val_loader=case.batches(30, 10))
        return flat([runner.state.history, metric.compute()]), snapshots

    gold, snapshots = run()
    for number in range(len(snapshots.saved) - 1):
        assert run(snapshots.load(number))[0] == gold, f"stopped after checkpoint {number}"


METRIC_CHECKS = [check_split, check_reset, check_metric_state, check_device, check_logs, check_metric_resume]


def in_two_processes(function, folder):
    """What ``function(rank, folder)`` returns in each of two processes of a gloo group, which torch can save.

    The function stands at the top of a module, since new processes import it. Starting them costs seconds: let one
    function try all you have::

        def on_a_rank(rank, folder):
            return {"mine": train_on_rank(CASE, rank, folder), "metric": measure_on_rank(METRIC, rank)}


        def test_two_processes(tmp_path):
            one, other = in_two_processes(on_a_rank, tmp_path)
            check_ranks(one["mine"], other["mine"])
            check_measures(METRIC, one["metric"], other["metric"])
    """
    folder = Path(folder)
    mp.spawn(_on_a_process, (function, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _on_a_process(rank, function, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(function(rank, folder), folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo and DistributedDataParallel abort now and then as an interpreter ends; so this one does not


def train_on_rank(case, rank, folder):
    """Trains on data of this rank's own; ranks validate on unequally many batches. For :func:`in_two_processes`."""
    folder, printed = folder / f"files of rank {rank}", io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(case.network(), **case.ddp_options)
        runner = case.runner(case.make(folder), model, accumulate_steps=2)
        history = runner.fit(case.batches(rank), epochs=3, val_loader=case.batches(5)[: 2 * rank + 1])
    return {
        "weights": [parameter.detach() for parameter in model.parameters()],
        "epochs": len(history),
        "steps": runner.state.global_step,
        "printed": printed.getvalue(),
        "files": [str(path.relative_to(folder)) for path in folder.rglob("*")],
    }


def check_ranks(one, other):
    """Two ranks end alike, and only the first of them has printed and written."""
    for key in ("weights", "epochs", "steps"):
        assert flat(one[key]) == flat(other[key]), f"the ranks differ in {key}"
    assert not other["printed"], f"rank 1 has printed {other['printed']!r}"
    assert not other["files"], f"rank 1 has written {other['files']}"


def measure_on_rank(case, rank):
    """The metric's value over two ranks: the first has no sample, 17 or 40 of the 40. For :func:`in_two_processes`."""
    values = []
    for first in (0, 17, 40):
        runner, metric = case.runner()
        batches = [batch for batch in case.batches(first, 40 - first)[rank : rank + 1] if len(batch[0])]
        runner.evaluate(batches)
        values.append(torch.as_tensor(metric.compute()))
    return values


def check_measures(case, one, other):
    """Each rank has the value of all samples, however they were dealt."""
    for value in (*one, *other):
        close(value, torch.as_tensor(case.whole()))


def flat(value, path=""):
    """Nested values as a list of plain ones, equal where all bits are."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key], f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for number, one in enumerate(value) for leaf in flat(one, f"{path}/{number}")]
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [(path, value.dtype, value.shape, bytes(bits.tolist()))]
    return [(path, value.hex() if isinstance(value, float) else value)]


def close(one, other):
    """Equal, but for the order in which numbers were summed; nan is like nan."""
    one, other = (torch.as_tensor(value).double() for value in (one, other))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)
