"""A step that cannot be a graph runs as usual, with the numbers of the ordinary step, and a line says why."""

import copy
import random
import sys

import numpy
import pytest
import torch
from fit_callbacks import CompiledStep, GradientClipping, LRScheduler, ResetOptimizer
from fit_callbacks.compiled import progress, traced
from fit_core import Callback, Runner
from torch import nn


class Net(nn.Module):
    """A network with something in its forward pass."""

    def __init__(self, extra=lambda module, output: output):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.extra, self.calls, self.last = extra, 0, None

    def forward(self, input):
        return self.extra(self, self.layers(input))


def batches(sizes=(8,) * 6):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator)) for n in sizes]


def sgd(weights):
    return torch.optim.SGD(weights, 0.1, momentum=0.9)


def train(*callbacks, model=None, make=sgd, data=None, runner=Runner, criterion=None, epochs=2, **options):
    model = model or Net()
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    criterion = criterion or nn.CrossEntropyLoss()
    run = runner(model, make(model.parameters()), criterion, callbacks=callbacks, **options)
    return model.state_dict(), run.fit(data or batches(), epochs=epochs)


def assert_as_usual(capsys, reason, parts=dict, callbacks=list, **options):
    """Train with CompiledStep and without: the same bits, and one line with the reason."""
    ours = train(*callbacks(), CompiledStep(), **parts(), **options)
    lines = [line for line in capsys.readouterr().out.splitlines() if "as usual" in line]
    assert len(lines) == 1
    assert reason in lines[0]
    theirs = train(*callbacks(), **parts(), **options)
    assert ours[1] == theirs[1]
    for a, b in zip(ours[0].values(), theirs[0].values(), strict=True):
        assert torch.equal(a, b)


def reads(module, output):
    return output if output.sum().item() > 0 else 2 * output


def branches(module, output):
    return output if output.sum() > 0 else 2 * output


def counts(module, output):
    module.calls += 1
    return output / module.calls


def remembers(module, output):
    last, module.last = module.last, output.detach()
    return output if last is None else output + 0.1 * last


def python_random(module, output):
    return output * random.random()


def numpy_random(module, output):
    return output * numpy.random.rand()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (reads, "it reads a number from a tensor (test_compiled_reasons.py:"),
        (branches, "it reads a number from a tensor (test_compiled_reasons.py:"),
        (counts, "the step changes model.calls, which a graph would not"),
        (remembers, "the step changes model.last, which a graph would not"),
        (python_random, "draws random numbers from Python or NumPy"),
        (numpy_random, "draws random numbers from Python or NumPy"),
    ],
)
def test_forward_passes(extra, reason, capsys):
    assert_as_usual(capsys, reason, lambda: {"model": Net(extra)})


class Own(Runner):
    def _make_step(self):
        super()._make_step()


class Anneal(Runner):
    def forward(self):
        super().forward()
        self.state.loss = self.state.loss / (1 + self.state.global_step)


class Unmarked(Callback):
    def on_before_step(self, state):
        for parameter in state.model.parameters():
            parameter.grad.clamp_(-0.1, 0.1)


class Reading(Unmarked):
    capturable = True

    def on_before_step(self, state):
        for parameter in state.model.parameters():
            parameter.grad.div_(1 + state.epoch)


class Counting(Unmarked):
    capturable = True

    def __init__(self):
        self.steps = 0

    def on_before_step(self, state):
        self.steps += 1


def unsupported(name):
    return lambda weights: getattr(torch.optim, name)(weights, 0.01)


def hooked(weights):
    optimizer = sgd(weights)
    optimizer.register_step_post_hook(lambda *arguments: None)
    return optimizer


class Odd:
    def __init__(self, value):
        self.value = value

    def to(self, device):
        return self


class OddNet(Net):
    def forward(self, input):
        return super().forward(input.value)


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("it is not the Runner's own", {"runner": Own}),
        ("the step reads state.global_step, which a graph would freeze", {"runner": Anneal}),
        ("it does not know whether the step of Adagrad can be part of a graph", {"make": unsupported("Adagrad")}),
        ("SGD has hooks, which would not be called", {"make": hooked}),
        ("the gradient scaler of fp16", {"use_fp16": True}),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_runners_and_optimizers(reason, options, capsys):
    assert_as_usual(capsys, reason, **options)


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (Unmarked, "Unmarked.on_before_step is not marked with capturable = True"),
        (Reading, "the step reads state.epoch"),
        (Counting, "the step changes Counting.steps"),
    ],
)
def test_hooks(hook, reason, capsys):
    assert_as_usual(capsys, reason, callbacks=lambda: [hook()])


def test_batches_and_outputs_of_other_types(capsys):
    data = [(Odd(x), y) for x, y in batches()]

    class Sized(Runner):
        def forward(self):
            self.state.batch_size = 8
            super().forward()

    options = {"data": data, "runner": Sized}
    assert_as_usual(capsys, "a batch contains a Odd", lambda: {"model": OddNet()}, **options)


def test_weights_of_batches_in_a_window(capsys):
    class Weigh(Callback):
        def on_batch_begin(self, state):
            state.weight = (state.target > 0).sum()

    reason = "the weight of a batch is a tensor, and accumulate_steps is above 1"
    assert_as_usual(capsys, reason, callbacks=lambda: [Weigh()], accumulate_steps=2, epochs=4)


def test_weights_that_forward_sets_in_a_window(capsys):
    class Weighed(Runner):
        def forward(self):
            super().forward()
            self.state.weight = (self.state.target > 0).sum()

    assert_as_usual(capsys, "forward sets the weight of a batch", runner=Weighed, accumulate_steps=2, epochs=4)


def test_momentum_that_changes_at_each_step(capsys):
    def cycle():
        return [LRScheduler(lambda o, steps: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=steps + 1))]

    assert_as_usual(capsys, "With OneCycleLR, pass cycle_momentum=False", callbacks=cycle, epochs=5)


def test_no_compiler_on_the_machine(capsys, monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(traced, "_compile", missing)
    assert_as_usual(capsys, "RuntimeError: no C++ compiler was found")
    data = batches((8, 8, 8, 8, 3))
    assert_as_usual(capsys, "no C++ compiler", data=data, accumulate_steps=2, epochs=4)


@pytest.mark.compiler
def test_a_torch_without_the_function_that_compiles(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.compile_fx", None)
    assert_as_usual(capsys, "recording it failed: ModuleNotFoundError: import of torch._inductor.compile_fx")


def test_a_wrong_batch_is_an_error_as_usual():
    data = [*batches(), (torch.randn(8, 5), torch.randint(4, (8,)))]
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(CompiledStep(), data=data, epochs=4)


def test_many_shapes(capsys, monkeypatch):
    monkeypatch.setattr(progress, "GRAPHS", 2)
    data = batches((8, 7, 6, 5))
    ours, theirs = train(CompiledStep(), data=data, epochs=5), train(data=data, epochs=5)
    out = capsys.readouterr().out
    assert out.count("was compiled") == 2
    assert out.count("there are 2 graphs, and the shapes of batches keep changing") == 1
    for a, b in zip(ours[0].values(), theirs[0].values(), strict=True):
        torch.testing.assert_close(a, b)


def test_parts_that_are_replaced(capsys, monkeypatch):
    monkeypatch.setattr(progress, "AGAIN", 9)

    class Change(Callback):
        def on_epoch_begin(self, state):
            if state.epoch == 1:
                self.kept = copy.deepcopy(state.optimizer.state_dict())
            if state.epoch == 2:
                state.optimizer.load_state_dict(self.kept)
            if state.epoch == 3:
                state.model.layers[0].weight.data = state.model.layers[0].weight.data.clone()
            if state.epoch == 4:
                state.model.layers[1] = nn.Sigmoid()
            if state.epoch == 5:
                state.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def parts():
        return ResetOptimizer([1]), Change()

    ours, theirs = train(*parts(), CompiledStep(), epochs=7), train(*parts(), epochs=7)
    assert "as usual" not in capsys.readouterr().out
    for a, b in zip(ours[0].values(), theirs[0].values(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_clipping_that_changes(capsys):
    class Tighten(Callback):
        def on_epoch_begin(self, state):
            state.callbacks[0].max_norm = 1.0 / (1 + state.epoch)

    def run(*last):
        return train(GradientClipping(1.0), Tighten(), *last, epochs=3)

    ours, theirs = run(CompiledStep()), run()
    assert "as usual" not in capsys.readouterr().out
    for a, b in zip(ours[0].values(), theirs[0].values(), strict=True):
        torch.testing.assert_close(a, b)
