"""Callbacks that look at a run: the clock, the trace, the search for a learning rate."""

import itertools
import json
import math
import random
import time
from types import SimpleNamespace

import fit_callbacks.timer
import numpy
import pytest
import torch
from fit_callbacks import LRFinder, Profiler, Timer
from fit_core import Callback
from scene import Watch, batches, flat, make, network
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Costs(Callback):
    """Each training batch takes a second."""

    def __init__(self, clock):
        self.clock = clock

    def on_after_backward(self, state):
        self.clock.now += 1.0


def slow(clock, seconds, n=4):
    class Loader:
        num_workers = 0

        def __len__(self):
            return n

        def __iter__(self):
            for batch in batches((4,) * n):
                clock.now += seconds
                yield batch

    return Loader()


def test_the_share_of_waiting_is_logged_with_advice(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    for order in ([Timer(), Costs(clock)], [Costs(clock), Timer()]):
        history = make(*order).fit(slow(clock, 3.0), epochs=2, val_loader=slow(clock, 50.0))
        assert [row["data_wait"] for row in history] == [0.75, 0.75]
        out = capsys.readouterr().out
        assert out.count("\n") == 1  # advice is given once
        assert "in epoch 1 the model waited for data 75% of the time (12.0 of 16.0 s)" in out
        assert "num_workers=4" in out


def test_a_quick_loader_gets_no_advice(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    assert make(Timer(), Costs(clock)).fit(slow(clock, 0.1))[0]["data_wait"] == pytest.approx(0.1 / 1.1)
    assert capsys.readouterr().out == ""


def test_a_wait_of_less_than_a_second_is_not_worth_a_line(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    assert make(Timer()).fit(slow(clock, 0.2))[0]["data_wait"] == 1.0
    assert capsys.readouterr().out == ""


def test_advice_depends_on_the_loader():
    data = TensorDataset(torch.zeros(4, 1))
    advice = [
        fit_callbacks.timer._advice(loader)
        for loader in (
            [],
            DataLoader(data),
            DataLoader(data, num_workers=2),
            DataLoader(data, num_workers=2, persistent_workers=True),
        )
    ]
    for text, part in zip(
        advice, ("in a DataLoader", "num_workers=4", "persistent_workers=True", "2 workers are not enough"), strict=True
    ):
        assert part in text


def test_on_an_accelerator_events_are_read_only_when_they_have_passed(monkeypatch):
    reads = []

    class Event:
        made = 0

        def __init__(self, enable_timing):
            assert enable_timing
            Event.made += 1
            self.number = Event.made
            self.passed = False

        def record(self):
            pass

        def query(self):
            return self.passed

        def synchronize(self):
            reads.append("synchronize")
            self.passed = True

        def elapsed_time(self, other):
            reads.append((self.number, other.number))
            return 250.0

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
    waits = fit_callbacks.timer.DeviceWaits(torch.device("cpu"))
    for _ in range(3):
        waits.begin()
        waits.end()
    assert reads == []
    for begin, end in list(waits._pairs)[:2]:
        begin.passed = end.passed = True
    waits.begin()
    waits.end()
    assert reads == [(1, 2), (3, 4)]
    assert waits.seconds() == 1.0
    assert reads == [(1, 2), (3, 4), "synchronize", (5, 6), (7, 8)]


def test_the_profiler_writes_a_trace_of_the_steps_asked_for(tmp_path, capsys):
    make(Profiler(tmp_path, wait=1, warmup=1, active=2)).fit(batches(), epochs=2)
    (path,) = tmp_path.glob("*.pt.trace.json")
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert {name for name in names if name and name.startswith("ProfilerStep")} == {"ProfilerStep#2", "ProfilerStep#3"}
    assert names.count("aten::cross_entropy_loss") == 2
    assert capsys.readouterr().out == ""


def test_a_run_too_short_to_trace_says_so(tmp_path, capsys):
    make(Profiler(tmp_path, wait=50)).fit(batches())
    assert "Profiler: the run ended before the steps that were to be traced" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="active must be 1 or more, got 0"):
        Profiler(tmp_path, active=0)


# LRFinder


def quadratic(lr_max=8.0, **options):
    """On (w - 1)^2 / 2 averaged over nothing: plain SGD converges below lr 2 and explodes above."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    finder = LRFinder(1e-3, lr_max, steps=60, smoothing=0.0, **options)
    runner = make(finder, model=model)
    runner.state.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner.state.criterion = lambda output, target: ((output - target) ** 2).mean() / 2
    return runner, finder, model


def test_the_curve_is_that_of_a_loop_by_hand():
    runner, finder, _ = quadratic()
    runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    rates = [1e-3 * 8000 ** (step / 59) for step in range(60)]
    weight, losses = 0.0, []
    for lr in rates:
        loss = (weight - 1) ** 2 / 2
        if losses and loss > 4 * min(losses):
            break
        losses.append(loss)
        weight -= lr * (weight - 1)
    assert finder.lrs == pytest.approx(rates[: len(losses)])
    assert finder.losses == pytest.approx(losses, rel=1e-3)
    slopes = [b - a for a, b in itertools.pairwise(losses)]
    assert finder.suggestion == pytest.approx(rates[slopes.index(min(slopes))])
    assert 0.01 < finder.suggestion < 2


@pytest.mark.parametrize("use_fp16", [False, True])
def test_everything_is_put_back_exactly(use_fp16):
    trained, searched = make(use_fp16=use_fp16), make(use_fp16=use_fp16)
    for runner in (trained, searched):
        torch.manual_seed(0)
        runner.fit(batches(), epochs=2)
    before = flat([trained.state.state_dict()[key] for key in ("model", "optimizer", "grad_scaler")])
    finder = LRFinder(steps=20)
    searched.state.callbacks.append(finder)
    searched.fit(batches(), steps_per_epoch=20)
    assert flat([searched.state.state_dict()[key] for key in ("model", "optimizer", "grad_scaler")]) == before
    assert len(finder.lrs) > 10


class Draws(Dataset):
    """Augments with every random generator."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        noise = torch.randn(6) + random.random() + float(numpy.random.rand())
        return noise, index % 3


def test_training_after_a_search_is_the_same_as_without_one():
    class Counts(nn.Module):
        """Remembers in a buffer that is not saved, and in one that grows."""

        def __init__(self):
            super().__init__()
            self.register_buffer("batches", torch.zeros(()), persistent=False)
            self.register_buffer("seen", torch.zeros(0))

        def forward(self, input):
            if self.training:
                self.batches += 1
                self.seen = torch.cat([self.seen, input.mean().detach()[None]])
            return input * (1 + self.batches / 100)

    def train(searches):
        model = nn.Sequential(Counts(), network())
        random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
        loader = DataLoader(Draws(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
        if searches:
            make(LRFinder(steps=12), model=model).fit(loader)
        runner = make(model=model)
        return runner.fit(loader, epochs=2), runner.state.state_dict()["model"]

    (history, model), (expected, by_itself) = train(searches=True), train(searches=False)
    assert history == expected
    assert flat(model) == flat(by_itself)


def test_a_search_asks_for_the_weights_of_a_lazy_model():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"LRFinder needs the weights, .* Run it once before fit: model\(input\)"):
        make(LRFinder(steps=10), model=model).fit(batches(), steps_per_epoch=10)


def test_weights_are_back_after_an_explosion_and_after_an_error():
    runner, finder, model = quadratic(lr_max=100.0)
    history = runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    assert len(finder.lrs) < 60
    assert model.weight.item() == 0.0
    assert [row["stopped_after_batch"] for row in history] == [len(finder.lrs) + 1]

    class Fail(Callback):
        def on_batch_end(self, state):
            if state.batch_idx == 5:
                raise RuntimeError("broken off")

    runner.state.callbacks.append(Fail())
    with pytest.raises(RuntimeError, match="broken off"):
        runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    assert model.weight.item() == 0.0
    assert runner.state.optimizer.param_groups[0]["lr"] == 0.1


def test_a_criterion_with_parameters_is_restored_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return nn.functional.cross_entropy(self.scale * output, target)

    scales, runner = [], make(LRFinder(steps=20))
    criterion = runner.state.criterion = Scaled()
    runner.state.optimizer.add_param_group({"params": criterion.parameters()})
    runner.state.callbacks.append(Watch("on_batch_end", lambda state: scales.append(criterion.scale.item())))
    runner.fit(batches(), steps_per_epoch=20)
    assert len(set(scales)) > 10
    assert criterion.scale.item() == 1
    assert criterion.scale.grad is None


def test_smoothing_and_accumulation():
    finder = LRFinder(steps=12, smoothing=0.5)
    make(finder, model=network(), accumulate_steps=2).fit(batches(), epochs=6)
    assert len(finder.lrs) == 12
    assert all(math.isfinite(loss) for loss in finder.losses)


def test_the_finder_draws_and_refuses(tmp_path):
    with pytest.raises(ValueError, match="this run has 5: pass steps_per_epoch=100"):
        make(LRFinder()).fit(batches())
    with pytest.raises(ValueError, match=r"max_lr must be above 1, got 0\.1"):
        LRFinder(1.0, 0.1)
    finder = LRFinder(steps=10)
    with pytest.raises(ValueError, match="there is no curve yet"):
        finder.plot()
    make(finder).fit(batches(), epochs=2)
    figure = finder.plot(tmp_path / "new" / "lr.png")
    assert (tmp_path / "new" / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [
        list(point) for point in zip(finder.lrs, finder.losses, strict=True)
    ]
