"""Check that a callback or a metric keeps the protocol of fit-core. Copy this file next to your tests.

A check is a function of a case and a folder. It makes small, seeded runs on the CPU, and fails with an ``assert``. In a
test file of pytest::

    CASE = CallbackCase(lambda folder: [MyCallback(folder / "log.txt")])


    @pytest.mark.parametrize("check", CALLBACK_CHECKS)
    def test_my_callback(check, tmp_path):
        check(CASE, tmp_path)

Do the same with :class:`MetricCase` and ``METRIC_CHECKS``. For two processes see :func:`in_two_processes`.
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
    """Return a small network with everything that makes exact resume hard: batch statistics and random numbers."""
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def vectors(seed):
    """Return batches of 3 classes. The last one is short."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (8, 8, 8, 8, 5)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


@dataclass(frozen=True)
class CallbackCase:
    """A callback and the run to check it in.

    Attributes:
        make: returns new callbacks that may write into a folder: the one to check, after others that it needs.
        network: returns a new model.
        batches: returns five or more batches of (input, target) for a seed.
        metrics: returns new metrics, if the callback looks at some.
        clock: names of results that measure time, which differ from run to run.
        ddp_options: options of DistributedDataParallel in two processes, if the callback needs some.
    """

    make: Callable[[Path], list[Callback]]
    network: Callable[[], nn.Module] = network
    batches: Callable[[int], list[Any]] = vectors
    metrics: Callable[[], list[Any]] = list
    clock: tuple[str, ...] = ()
    ddp_options: dict[str, Any] = field(default_factory=dict)

    def runner(self, callbacks, model=None, *, kind=Runner, **options):
        torch.manual_seed(0)
        model, criterion = model or self.network(), nn.CrossEntropyLoss() if kind is Runner else Temperature()
        parameters = [*model.parameters(), *criterion.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        return kind(model, optimizer, criterion, self.metrics(), callbacks, **options)

    def facts(self, state):
        """Return what two equal runs have in common, to the bit."""
        saved = {name: value for name, value in state.state_dict().items() if name != "settings"}
        for row in (saved["logs"], *saved["history"]):
            for name in self.clock:
                row.pop(name, None)
        return flat(saved)


class Temperature(nn.Module):
    """A criterion with a parameter that trains."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        return nn.functional.cross_entropy(self.scale * output, target)


class SeveralLosses(Runner):
    """A forward that sets a dict of losses, and a weight that is a tensor."""

    def forward(self):
        state = self.state
        state.output = state.model(state.input)
        state.weight = torch.tensor(float(len(state.output)))
        if state.needs_loss:
            size = state.output.square().mean()
            state.loss = {"loss": state.criterion(state.output, state.target) + 0.01 * size, "size": size}


class WholeBatches(Runner):
    """A forward for batches that are dicts. There is no target, so metrics and callbacks see None."""

    def forward(self):
        state = self.state
        state.output = state.model(state.input["input"])
        if state.needs_loss:
            state.loss = state.criterion(state.output, state.input["label"])


class OwnStep(Runner):
    """A step that is not the standard one, and sets the loss after its backward pass."""

    def _make_step(self):
        state = self.state
        with self.autocast():
            state.output = state.model(state.input)
            loss = state.criterion(state.output, state.target)
        if state.is_train:
            self.backward(loss)
            self.optimizer_step()
        state.loss = loss


class Snapshots(Callback):
    """Keeps the state wherever it is exact, as the bytes of a file that plain torch can read."""

    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        self.saved.append(to_file(state.state_dict()))

    def load(self, number):
        return from_file(self.saved[number])


class FirstMemories(Callback):
    """Notes what callbacks remember at the start of a run."""

    def on_epoch_begin(self, state):
        if not hasattr(self, "memories"):
            self.memories = flat(state.state_dict()["callbacks"])


class CountSteps(Callback):
    """Wraps the step, and counts how often it is called and how many batches there are."""

    def on_begin(self, state):
        step, self.steps, self.batches = state.make_step, 0, 0

        def counted():
            self.steps += 1
            step()

        state.make_step = counted

    def on_batch_end(self, state):
        self.batches += 1


class StopAt(Callback):
    """Stops the run after a batch: (epoch, is_train, batch_idx)."""

    def __init__(self, *place):
        self.place = place

    def on_batch_end(self, state):
        if self.place == (state.epoch, state.is_train, state.batch_idx):
            self.place = None  # only once
            state.should_stop = True


def check_hooks(case, folder):
    """Check that each ``on_...`` method is a hook and takes the state and nothing else."""
    for callback in case.make(folder):
        assert isinstance(callback, Callback)
        for name, method in inspect.getmembers(callback, inspect.ismethod):
            if name.startswith("on_"):
                assert name in HOOKS, f"{name} is not a hook"
                assert len(inspect.signature(method).parameters) == 1, f"{name} must take (self, state)"


def check_training(case, folder):
    """Check that a run ends in each precision and with accumulation, and a second one with the same callback too."""
    for number, options in enumerate(
        [{}, {"accumulate_steps": 3}, {"use_bf16": True}, {"use_fp16": True}, {"accumulate_steps": 3, "use_bf16": True}]
    ):
        runner = case.runner(case.make(folder / str(number)), **options)
        for _ in range(2):
            train_two_epochs(case, runner, case.batches(0), case.batches(1), options)


def check_evaluation(case, folder):
    """Check that ``evaluate`` and ``predict`` return the same without a run as without the callback, and work after."""
    plain, runner = case.runner([]), case.runner(case.make(folder))
    batches = case.batches(1)
    assert flat(runner.evaluate(batches)) == flat(plain.evaluate(batches)), "evaluate differs"
    assert flat(runner.predict(batches)) == flat(plain.predict(batches)), "predict differs"
    runner.fit(case.batches(0), epochs=2, val_loader=batches)
    assert flat(runner.evaluate(batches, name="test")) == flat(runner.evaluate(batches, name="test"))
    assert flat(runner.predict(batches)) == flat(runner.predict(batches))


def check_forward(case, folder):
    """Check a ``forward`` with a dict of losses and a weight that is a tensor, and a criterion with a parameter."""
    for number, options in enumerate([{}, {"accumulate_steps": 3}, {"use_fp16": True}]):
        runner = case.runner(case.make(folder / str(number)), kind=SeveralLosses, **options)
        batches = case.batches(1)
        history = train_two_epochs(case, runner, case.batches(0), batches, options)
        for row in history:
            if "stopped_after_batch" not in row:
                assert {"train/loss", "train/size", "val/loss", "val/size"} <= row.keys(), "the logs lack a loss"
        runner.evaluate(batches)
        runner.predict(batches)


def check_any_batch(case, folder):
    """Check batches that are not pairs, so that the input is a dict and the target is None."""

    def batches(seed):
        return [{"input": input, "label": label, "name": ["a"] * len(input)} for input, label in case.batches(seed)]

    runner = case.runner(case.make(folder), kind=WholeBatches)
    train_two_epochs(case, runner, batches(0), batches(1), {})
    runner.evaluate(batches(1))
    runner.predict(batches(1))


def check_own_step(case, folder):
    """Check a step that is not the standard one: in ``on_after_backward`` its loss is not set yet."""
    for number, options in enumerate([{}, {"accumulate_steps": 3, "use_fp16": True}]):
        runner = case.runner(case.make(folder / str(number)), kind=OwnStep, **options)
        train_two_epochs(case, runner, case.batches(0), case.batches(1), options)
        runner.evaluate(case.batches(1))
        runner.predict(case.batches(1))


def check_make_step(case, folder):
    """Check that a step which other callbacks wrap, before and after this one, is called for every batch."""

    def run(folder, *around):
        runner = case.runner([*around[:1], *case.make(folder), *around[1:]])
        runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
        return case.facts(runner.state)

    inner, outer = CountSteps(), CountSteps()
    assert run(folder / "wrapped", inner, outer) == run(folder / "plain"), "a wrapped step gives other results"
    for counter in (inner, outer):
        assert counter.steps == counter.batches, f"{counter.batches} batches, and the step was called {counter.steps}x"


def check_state(case, folder):
    """Check that what the callback remembers is the same after it went through a file and into a new one."""
    snapshots = Snapshots()
    case.runner([*case.make(folder / "first"), snapshots]).fit(case.batches(0), epochs=2, val_loader=case.batches(1))
    for number in {2, len(snapshots.saved) - 2}:
        first = FirstMemories()
        runner = case.runner([first, *case.make(folder / str(number))])
        saved = snapshots.load(number)
        runner.state.load_state_dict(saved)
        runner.fit(case.batches(0), epochs=2, val_loader=case.batches(1))
        assert first.memories == flat(saved["callbacks"]), "the loaded state is not the saved one"


def check_resume(case, folder):
    """Check that an interrupted run, resumed in new objects, ends with the same bits as an uninterrupted one.

    It is interrupted inside an accumulation window, inside an epoch, and between two epochs.
    """
    for kind in (Runner, SeveralLosses):
        snapshots = Snapshots()
        gold = train_three_epochs(case, [*case.make(folder / kind.__name__ / "gold"), snapshots], kind)
        for number in (0, 3, 5, 8):
            if number < len(snapshots.saved):
                callbacks = case.make(folder / kind.__name__ / str(number))
                resumed = train_three_epochs(case, [*callbacks, Snapshots()], kind, snapshots.load(number))
                assert case.facts(resumed.state) == case.facts(gold.state), f"interrupted after checkpoint {number}"


def check_stop(case, folder):
    """Check that a run which something stops inside an epoch can be resumed, and the same objects can run again."""
    gold = train_three_epochs(case, case.make(folder / "gold"))
    for place in ((1, True, 2), (1, False, 1)):  # in the middle of a window of the second epoch, and in its validation
        callbacks = case.make(folder / f"stopped {place}")
        stopped = train_three_epochs(case, [StopAt(*place), *callbacks])
        if stopped.state.epoch != 1:
            continue  # The callback itself has ended the run before.
        saved = from_file(to_file(stopped.state.state_dict()))
        resumed = train_three_epochs(case, [StopAt(), *case.make(folder / f"resumed {place}")], saved=saved)
        assert case.facts(resumed.state) == case.facts(gold.state), f"stopped at (epoch, is_train, batch_idx) {place}"
        train_two_epochs(case, stopped, case.batches(0), case.batches(1), {"accumulate_steps": 2})


CALLBACK_CHECKS = [
    check_hooks,
    check_training,
    check_evaluation,
    check_forward,
    check_any_batch,
    check_own_step,
    check_make_step,
    check_state,
    check_resume,
    check_stop,
]


def train_two_epochs(case, runner, batches, val_batches, options):
    """Train, and check that the run was complete and the weights are finite. Return the history."""
    history = runner.fit(batches, epochs=2, val_loader=val_batches)
    state = runner.state
    assert len(state.history) == 2 or state.should_stop, f"the run ended by itself with {options}"
    parameters = [*state.model.parameters(), *state.criterion.parameters()]
    assert all(parameter.isfinite().all() for parameter in parameters), f"weights are not finite with {options}"
    return history


def train_three_epochs(case, callbacks, kind=Runner, saved=None):
    """Train with accumulation, from scratch or from a saved state. Return the Runner."""
    runner = case.runner(callbacks, kind=kind, accumulate_steps=2)
    torch.manual_seed(7 if saved else 0)  # the generator of a new process may be anywhere
    if saved:
        runner.state.load_state_dict(saved)
    runner.fit(case.batches(0), epochs=3, val_loader=case.batches(1))
    return runner


@dataclass(frozen=True)
class MetricCase:
    """A metric and samples for it.

    Attributes:
        make: returns a new metric.
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
    """Check that batches of other sizes, including a short last one, give the same value."""
    close(case.fed(*case.batches(7, 7, 7, 7, 7, 5)).compute(), case.whole())
    close(case.fed(*case.batches(1, 39)).compute(), case.whole())


def check_reset(case, folder):
    """Check that ``reset`` forgets and ``compute`` does not, and that there is a value, maybe nan, without samples."""
    metric = case.fed(*case.batches(25, 15))
    close(metric.compute(), case.whole())
    close(metric.compute(), case.whole())
    metric.reset()
    close(metric.compute(), case.fed().compute())
    metric.update(case.output, case.target)
    close(metric.compute(), case.whole())


def check_metric_state(case, folder):
    """Check that a state is a copy, survives a file, and can be continued by a new metric."""
    first, second = case.batches(25, 15)
    metric = case.fed(first)
    state = metric.state_dict()
    metric.update(*second)
    file = to_file(state)
    other = case.fed()
    other.load_state_dict(from_file(file))
    other.update(*second)
    close(other.compute(), case.whole())


def check_device(case, folder):
    """Check that ``to`` moves the metric and ``update`` reads no value: the device meta does not have any."""
    metric = case.make()
    metric.to(torch.device("meta"))
    metric.reset()
    for _ in range(2):
        metric.update(case.output.to("meta"), case.target.to("meta"))


def check_logs(case, folder):
    """Check that the Runner logs the value under the metric's name. A tensor of several values is not logged."""
    runner, metric = case.runner()
    logs = runner.evaluate(case.batches(16, 16, 8), name="test")
    value = case.whole()
    if torch.as_tensor(value).numel() == 1:
        close(logs[f"test/{metric.name}"], float(value))
    else:
        assert list(logs) == ["test/loss"]
        close(metric.compute(), value)
    assert getattr(metric, "higher_is_better", None) in (True, False, None)


def check_metric_resume(case, folder):
    """Check that a run that is interrupted inside an epoch has the same bits in its history as an uninterrupted one."""

    def run(saved=None):
        snapshots = Snapshots()
        runner, metric = case.runner(snapshots)
        if saved:
            runner.state.load_state_dict(saved)
        runner.fit(case.batches(16, 16, 8), epochs=2, val_loader=case.batches(30, 10))
        return flat([runner.state.history, metric.compute()]), snapshots

    gold, snapshots = run()
    for number in range(len(snapshots.saved) - 1):
        assert run(snapshots.load(number))[0] == gold, f"interrupted after checkpoint {number}"


METRIC_CHECKS = [check_split, check_reset, check_metric_state, check_device, check_logs, check_metric_resume]


def in_two_processes(function, folder):
    """Call ``function(rank, folder)`` in two processes of a gloo group, and return what it returned on each.

    The function must be at the top of a module, since new processes import it, and return what torch can save. Starting
    the processes takes seconds, so let one function try everything you have::

        def on_a_rank(rank, folder):
            return {"mine": train_on_rank(CASE, rank, folder), "metric": measure_on_rank(METRIC, rank)}


        def test_two_processes(tmp_path):
            first, second = in_two_processes(on_a_rank, tmp_path)
            check_ranks(first["mine"], second["mine"])
            check_measures(METRIC, first["metric"], second["metric"])
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
    os._exit(0)  # gloo and DistributedDataParallel sometimes abort when an interpreter ends, so this one does not


def train_on_rank(case, rank, folder):
    """Train on this rank's own data. Ranks validate on different numbers of batches. For :func:`in_two_processes`."""
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


def check_ranks(first, second):
    """Check that two ranks end alike, and that only the first has printed and written."""
    for key in ("weights", "epochs", "steps"):
        assert flat(first[key]) == flat(second[key]), f"the ranks differ in {key}"
    assert not second["printed"], f"rank 1 has printed {second['printed']!r}"
    assert not second["files"], f"rank 1 has written {second['files']}"


def measure_on_rank(case, rank):
    """Return the metric's values over two ranks, of which the first has 0, 17 or 40 of the 40 samples.

    For :func:`in_two_processes`.
    """
    values = []
    for size in (0, 17, 40):
        runner, metric = case.runner()
        batches = [batch for batch in case.batches(size, 40 - size)[rank : rank + 1] if len(batch[0])]
        runner.evaluate(batches)
        values.append(torch.as_tensor(metric.compute()))
    return values


def check_measures(case, first, second):
    """Check that each rank has the value of all samples, however they were split."""
    for value in (*first, *second):
        close(value, torch.as_tensor(case.whole()))


def to_file(state):
    """Save a state into memory."""
    file = io.BytesIO()
    torch.save(state, file)
    return file


def from_file(file):
    """Load a state as plain torch does."""
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value, path=""):
    """Return nested values as a list of plain ones, which are equal if all bits are."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flat(value[key], f"{path}/{key}")]
    if isinstance(value, (list, tuple)):
        return [leaf for number, part in enumerate(value) for leaf in flat(part, f"{path}/{number}")]
    if isinstance(value, torch.Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        return [(path, value.dtype, value.shape, bytes(bits.tolist()))]
    return [(path, value.hex() if isinstance(value, float) else value)]


def close(value, expected):
    """Check that two values are equal up to the order in which numbers were summed. nan is equal to nan."""
    value, expected = (torch.as_tensor(number).double() for number in (value, expected))
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9, equal_nan=True)
