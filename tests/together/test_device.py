"""On a device whose values cannot be read, a step shows whether anything waits for it: torch's "meta" stands for it."""

from types import SimpleNamespace

import pytest
import torch
from fit_callbacks import ConsoleLogger, GradientClipping, ModelEma, Timer
from fit_core import Callback, Runner
from fit_metrics import Accuracy
from torch import nn
from torch.overrides import TorchFunctionMode

STEPS = 40


class Event:
    """A mark in the queue of a device that never comes so far."""

    def __init__(self, enable_timing):
        pass

    def record(self):
        pass

    def query(self):
        return False


@pytest.fixture(autouse=True)
def device_module(monkeypatch):
    """The module of the device, as torch.cuda is for "cuda"."""
    module = SimpleNamespace(get_rng_state=lambda device: torch.zeros(8, dtype=torch.uint8), Event=Event)
    monkeypatch.setattr(torch, "meta", module, raising=False)


class WeighByDevice(Callback):
    """Weighs each batch by a number that only the device knows."""

    def on_batch_begin(self, state):
        if state.is_train:
            state.weight = (state.target != 0).sum()


def parts(output, target):
    loss = nn.functional.cross_entropy(output, target)
    return {"loss": loss, "half": loss / 2}


def share_of_zero(output, target):
    return (output.argmax(1) == 0).float().mean()


class Count(Callback):
    steps = 0

    def on_batch_end(self, state):
        self.steps += 1


def fit_on_meta(*callbacks, model=None, criterion=None, **options):
    model = model or nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = Runner(model, optimizer, criterion or nn.CrossEntropyLoss(), callbacks=callbacks, **options)
    runner.fit([(torch.randn(4, 8), torch.randint(4, (4,)))] * STEPS)


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 3}, {"metrics": [Accuracy(1), Accuracy(2)]}])
@pytest.mark.parametrize("callbacks", [[], [Timer(), ModelEma(), GradientClipping(1.0), ConsoleLogger()]])
def test_nothing_is_read_from_the_device_before_the_epoch_ends(options, callbacks):
    count = Count()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the epoch's loss has no value there
        fit_on_meta(*callbacks, count, **options)
    assert count.steps == STEPS


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_weights_and_parts_of_the_loss_stay_on_the_device(accumulate_steps):
    count = Count()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit_on_meta(WeighByDevice(), count, criterion=parts, metrics=[share_of_zero], accumulate_steps=accumulate_steps)
    assert count.steps == STEPS


def test_the_device_tells_when_something_reads_it():
    class Reader(Callback):
        steps = 0

        def on_batch_end(self, state):
            float(state.loss.detach())
            self.steps += 1

    reader = Reader()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit_on_meta(reader)
    assert reader.steps == 0


def test_batches_are_copied_without_a_wait():
    copies = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.to and args[0].device.type == "cpu":
                copies.append((tuple(args[0].shape), kwargs))
            return function(*args, **(kwargs or {}))

    model = nn.Linear(8, 4, device="meta")
    with Copies(), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit_on_meta(model=model)
    assert [copied for copied in copies if copied[0] in ((4, 8), (4,))] == [
        ((4, 8), {"non_blocking": True}),
        ((4,), {"non_blocking": True}),
    ] * STEPS


def test_predictions_are_waited_for_on_their_way_to_the_cpu():
    copies = []

    class Copies(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.to and args[0].device.type == "meta":
                copies.append((args[1], kwargs))
                return torch.ones(args[0].shape)
            return function(*args, **(kwargs or {}))

    model = nn.Linear(8, 4, device="meta")
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    with Copies():
        assert runner.predict([torch.randn(4, 8)] * 2).shape == (8, 4)
    assert copies == [(torch.device("cpu"), {"non_blocking": False})] * 2


def test_channels_last_stays_so():
    seen = []

    class Look(nn.Conv2d):
        def forward(self, input):
            seen.append(input.is_contiguous(memory_format=torch.channels_last))
            return super().forward(input).mean((2, 3))

    model = Look(3, 4, 3).to("meta", memory_format=torch.channels_last)
    images = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        runner.fit([(images, torch.zeros(2, dtype=torch.long))] * 2)
    assert seen == [True, True]
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_no_test_but_those_marked_gpu_sees_an_accelerator():
    assert not torch.cuda.is_available()
