"""CompiledStep notices what the Python code of a step reads, wherever it is, and follows when it changes."""

import functools

import numpy
import pytest
import torch
from fit_callbacks import CompiledStep
from fit_core import Callback, Runner
from followed import Net, adam, assert_follows, batches, train
from torch import nn

scale = 1.0
shared = {"calls": 0}


class Change(Callback):
    """Change something in the middle of each epoch, or at its start."""

    def __init__(self, change, hook):
        setattr(self, hook, lambda state: change(state) if hook == "on_epoch_begin" or state.batch_idx == 6 else None)


class Scale:
    """A number as a class attribute."""

    value = 1.0


class OfClass(Net):
    """A network that reads attributes of its class."""

    scale = 1.0
    act = staticmethod(torch.tanh)

    def forward(self, input):
        return self.layers(self.act(input)) * self.scale * self.options["scale"] * Scale.value


def fresh(forward=None, *, enclosed=1.0):
    """Return a network, with everything as it was before another test."""
    global scale
    scale = OfClass.scale = Scale.value = 1.0
    OfClass.act, shared["calls"] = staticmethod(torch.tanh), 0
    model = OfClass() if forward is None else Net(forward)
    model.scales = [1.0]
    return model


def reads_all(module, input):
    numbers = module.scales[0] * module.options["scale"] * getattr(module, "late", 1.0) * scale
    return module.layers(input) * numbers * module._buffers.get("added", 1.0)


def set_global(state):
    global scale
    scale = 1.0 + state.epoch


def set_class(state):
    OfClass.scale = Scale.value = 1.0 + state.epoch


def patch_class(state):
    OfClass.act = staticmethod([torch.sigmoid, torch.relu, torch.tanh][state.epoch])


CHANGES = {
    "list": lambda state: state.model.scales.__setitem__(0, 1.0 + state.epoch),
    "dict": lambda state: setattr(state.model, "options", {"scale": 1.0 + state.epoch}),
    "added": lambda state: setattr(state.model, "late", 2.0 + state.epoch),
    "tensor": lambda state: setattr(state.model, "late", torch.tensor(2.0 + state.epoch)),
    "buffer": lambda state: state.model.register_buffer("added", torch.tensor(2.0 + state.epoch)),
    "function": lambda state: setattr(state.model, "run", lambda module, input: module.layers(input) / 2),
    "module": lambda state: state.model.layers.__setitem__(1, nn.Sigmoid() if state.epoch % 2 else nn.Softplus()),
    "hook": lambda state: state.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 1.5),
    "hook of a weight": lambda state: state.model.layers[0].weight.register_hook(lambda gradient: gradient**2),
    "global": set_global,
}


@pytest.mark.parametrize("hook", ["on_batch_begin", "on_batch_end", "on_epoch_begin"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_a_hook_changes(name, hook, capsys):
    assert_follows(capsys, Change(CHANGES[name], hook), model=lambda: fresh(reads_all))


@pytest.mark.parametrize("change", [set_class, patch_class])
@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_begin"])
def test_what_a_hook_changes_in_a_class(change, hook, capsys):
    assert_follows(capsys, Change(change, hook), model=fresh)


def test_a_variable_that_a_function_encloses(capsys):
    enclosed = 1.0

    def forward(module, input):
        return module.layers(input) * enclosed

    def change(state):
        nonlocal enclosed
        enclosed = 1.0 + state.epoch

    def closed():
        nonlocal enclosed
        enclosed = 1.0
        return Net(forward)

    assert_follows(capsys, Change(change, "on_batch_end"), model=closed)


def test_a_tensor_that_a_callback_sets_after_each_batch(capsys):
    class Follow(Callback):
        def on_batch_end(self, state):
            state.model.late = 1 + state.loss.detach() / 10

    reason = "what it depends on changes too often"
    assert_follows(capsys, Follow(), model=lambda: fresh(reads_all), reason=reason)


class CountsInBackward(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, input):
        return input.clone()

    @staticmethod
    def backward(ctx, gradient):
        CountsInBackward.calls += 1
        return gradient / CountsInBackward.calls


def counts_in_backward(module, input):
    return CountsInBackward.apply(module.layers(input))


def counts_in_a_global(module, input):
    shared["calls"] += 1
    return module.layers(input) / shared["calls"]


def counts_in_a_class(module, input):
    Scale.value += 0.1
    return module.layers(input) * Scale.value


def counts_in_a_default(module, input, calls=[0]):  # noqa: B006
    calls[0] += 1
    return module.layers(input) / calls[0]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (counts_in_backward, "CountsInBackward.calls, which a graph would not"),
        (counts_in_a_global, "shared.calls, which a graph would not"),
        (counts_in_a_class, "Scale.value, which a graph would not"),
        (counts_in_a_default, "defaults.0.0, which a graph would not"),
    ],
)
def test_forward_passes_that_count(forward, reason, capsys):
    def model():
        CountsInBackward.calls = 0
        counts_in_a_default.__defaults__[0][0] = 0
        return fresh(forward)

    assert_follows(capsys, model=model, reason=reason)


class Multiply(Callback):
    """Change a buffer in place after each batch."""

    def on_batch_end(self, state):
        state.model.count.mul_(1.1)


def reads_list(module, input):
    return module.layers(input) * (1 + abs(input.tolist()[0][0]))


def reads_array(module, input):
    return module.layers(input) * (1 + float(abs(input.numpy()).mean()))


def reads_numpy(module, input):
    return module.layers(input) * (1 + float(numpy.asarray(input).std()))


def counts_a_mask(module, input):
    return module.layers(input) / len(input[input > 0])


def counts_nonzero(module, input):
    return module.layers(input) / (input > 0).nonzero().shape[0]


def reads_buffer(module, input):
    return module.layers(input) * module.count.item()


def compares_buffer(module, input):
    return module.layers(input) * (2 if module.count > 5 else 1)


TOLIST = "reads numbers from a tensor by tolist (test_compiled_frozen.py:"
READS = "it reads a number from a tensor"


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (reads_list, TOLIST),
        (reads_array, "reads numbers from a tensor by numpy (test_compiled_frozen.py:"),
        (reads_numpy, "reads numbers from a tensor by __array__ (test_compiled_frozen.py:"),
        (counts_a_mask, READS),
        (counts_nonzero, READS),
        (reads_buffer, READS),
        (compares_buffer, READS),
    ],
)
def test_numbers_that_a_trace_does_not_see(forward, reason, capsys):
    assert_follows(capsys, Multiply(), model=lambda: Net(forward), reason=reason)


def test_an_index_is_not_a_mask(capsys):
    def forward(module, input):
        return module.layers(input[(input[:, 0] * 3).long().clamp(0, 7)].masked_fill(input > 1, 0.0))

    assert_follows(capsys, model=lambda: Net(forward))


def test_an_object_that_a_partial_keeps(capsys):
    def scaled(options, module, input):
        return module.layers(input) * options["scale"]

    def model():
        return Net(functools.partial(scaled, {"scale": 1.0}))

    def change(state):
        state.model.run.args[0]["scale"] = 1.0 + state.epoch

    assert_follows(capsys, Change(change, "on_batch_end"), model=model)


def test_a_state_that_is_dropped_is_not_created_by_a_graph(capsys):
    class Drop(Callback):
        def on_epoch_begin(self, state):
            state.optimizer.state.clear()

    assert_follows(capsys, Drop())


@pytest.mark.parametrize("value", [torch.ones_like, lambda weight: None], ids=["ones", "none"])
def test_gradients_that_a_callback_replaces_inside_a_window(value, capsys):
    def change(state):
        if state.batch_idx == 7:
            for weight in state.model.parameters():
                weight.grad = value(weight)

    class Replace(Callback):
        def on_batch_begin(self, state):
            change(state)

    assert_follows(capsys, Replace(), accumulate_steps=2)


class LearnsScale(Runner):
    scale = 1.0

    def forward(self):
        super().forward()
        self.state.loss = self.state.loss * self.scale


def test_an_attribute_of_the_class_of_the_runner(capsys):
    def change(state):
        LearnsScale.scale = 1.0 + state.epoch

    outcomes = []
    for callbacks in ([CompiledStep()], []):
        LearnsScale.scale = 1.0
        outcomes.append(train(Change(change, "on_batch_end"), *callbacks, runner=LearnsScale, make=adam, data=batches))
        assert ("was compiled" in capsys.readouterr().out) == bool(callbacks)
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-12)
