"""The timer gives advice about data loading, and the profiler traces the steps asked for."""

import json
import re
import time
from types import SimpleNamespace

import fit_callbacks.timer
import pytest
import torch
from fit_callbacks import Profiler, Timer
from fit_callbacks.numbers import duration
from fit_core import Callback
from scene import batches, make
from torch.utils.data import BatchSampler, DataLoader, Subset, TensorDataset, WeightedRandomSampler


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
        assert "in epoch 1 waiting for data took 12.0 s and training 4.0 s (per batch 3.0 s and 1.0 s). Use" in out
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
    data = torch.zeros(4, 1)
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


INDEXED = {
    "shuffled": ({"shuffle": True}, "RandomSampler(dataset), 3, drop_last=False"),
    "in order": ({"drop_last": True}, "SequentialSampler(dataset), 3, drop_last=True"),
    "weighted": ({"sampler": WeightedRandomSampler([1.0] * 6, 8)}, "loader.sampler, 3, drop_last=False"),
    "workers": ({"shuffle": True, "num_workers": 2}, "RandomSampler(dataset), 3, drop_last=False"),
}


@pytest.mark.parametrize("case", INDEXED)
@pytest.mark.parametrize("part", [False, True])
def test_a_tensor_dataset_gets_a_line_that_yields_the_same_batches(case, part):
    options, expected = INDEXED[case]
    dataset = TensorDataset(torch.arange(8), torch.arange(8))
    if part:
        dataset = Subset(Subset(dataset, range(1, 8)), range(6))
    loader = DataLoader(dataset, batch_size=3, **options)
    advice = fit_callbacks.timer._advice(loader)
    (line,) = re.findall(r"DataLoader\(.*\)\)", advice)
    assert line == f"DataLoader(dataset, batch_size=None, sampler=BatchSampler({expected}))"
    pasted = eval(line, {**vars(torch.utils.data), "dataset": dataset, "loader": loader})

    def read(loader):
        torch.manual_seed(0)
        return [[part.tolist() for part in batch] for batch in loader]

    assert read(pasted) == read(loader)
    assert "num_workers=4" in fit_callbacks.timer._advice(pasted)
    seeded = DataLoader(dataset, batch_size=3, shuffle=True, generator=torch.Generator())
    assert "BatchSampler(loader.sampler, 3, " in fit_callbacks.timer._advice(seeded)


def test_a_tensor_dataset_that_is_indexed_by_other_means_gets_other_advice():
    dataset = TensorDataset(torch.arange(8), torch.arange(8))
    for options in (
        {"batch_size": 3, "collate_fn": lambda samples: samples},
        {"batch_size": None},
        {"batch_sampler": BatchSampler(range(8), 3, False), "num_workers": 2, "persistent_workers": True},
    ):
        assert "BatchSampler" not in fit_callbacks.timer._advice(DataLoader(dataset, **options))


def test_durations():
    values = [0, 3.14e-4, 0.9996e-3, 2.44e-3, 0.12, 0.9996, 12.34, 59.96, 125]
    shown = ["0 us", "314 us", "1 ms", "2.44 ms", "120 ms", "1.0 s", "12.3 s", "1:00", "2:05"]
    assert [duration(value) for value in values] == shown


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
