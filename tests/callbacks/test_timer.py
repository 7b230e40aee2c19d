"""The timer gives advice about data loading, and the profiler traces the steps asked for."""

import json
import time
from types import SimpleNamespace

import fit_callbacks.timer
import pytest
import torch
from fit_callbacks import Profiler, Timer
from fit_core import Callback
from scene import batches, make
from torch.utils.data import DataLoader, TensorDataset


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
        advice,
        ("use a DataLoader", "num_workers=4", "persistent_workers=True", "2 workers are not enough"),
        strict=True,
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
    assert "Profiler: the run ended before any step was recorded" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="expected active to be 1 or more, got 0"):
        Profiler(tmp_path, active=0)
