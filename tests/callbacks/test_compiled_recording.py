"""Recording a step leaves the run as it was, whether it works or not."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from fit_callbacks import CompiledStep
from fit_callbacks.compiled.batches import flatten
from fit_core import Callback, Runner
from followed import Net, adam, assert_follows, batches, train
from torch import nn

average = torch.ones((), dtype=torch.float64)


def changes_a_global(module, input):
    return module.layers(input) * average.mul_(0.99)


def fails_after_a_change(module, input):
    output = module.layers(input) * average.mul_(0.99)
    return output if output.sum() > 0 else 2 * output


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_networks(kind, capsys):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cells = kind(2, 6, batch_first=True)

        def forward(self, input):
            return self.cells(input.view(-1, 3, 2))[0][:, -1]

    assert_follows(capsys, model=Recurrent)


def test_conjugate_inputs_are_another_form():
    input = torch.zeros(2, dtype=torch.complex64)
    assert flatten(input, []) != flatten(input.conj(), [])


@pytest.mark.parametrize(
    ("forward", "reason"), [(changes_a_global, None), (fails_after_a_change, "it reads a number from a tensor")]
)
def test_recording_changes_no_tensor(forward, reason, capsys):
    def fresh():
        average.fill_(1.0)
        return Net(forward)

    assert_follows(capsys, model=fresh, reason=reason)


def test_recording_fails_in_an_optimizer_of_a_hook(capsys):
    def hooked():
        model = Net().double()
        weight = model.layers[0].weight
        other = adam([weight])

        def step(weight):
            other.step()
            weight.grad = None

        weight.register_post_accumulate_grad_hook(step)
        return model

    assert_follows(capsys, model=hooked, make=lambda weights: adam(list(weights)[1:]), reason="reads a number")


class SetsInput(Runner):
    def forward(self):
        self.state.input = self.state.input * 2
        super().forward()


class Inputs(Callback):
    def on_batch_end(self, state):
        self.seen = [*getattr(self, "seen", ()), state.input.sum()]


def test_a_forward_that_sets_the_input(capsys):
    ours, theirs = Inputs(), Inputs()
    train(ours, CompiledStep(), runner=SetsInput)
    assert "was compiled" in capsys.readouterr().out
    train(theirs, runner=SetsInput)
    torch.testing.assert_close(ours.seen, theirs.seen)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.large, self.small = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, input):
        return self.large(input) if len(input) == 8 else self.small(input)


def test_recording_fails_inside_a_window_of_unequal_batches(capsys):
    def data():
        *others, (x, y) = batches(12)
        return 2 * [*others, (x[:4], y[:4])]

    reason = "the parameters that get a gradient differ between the batches of a window"
    assert_follows(capsys, model=Branches, data=data, accumulate_steps=3, reason=reason)


class Scale(Callback):
    """Replace the weights after each step."""

    def on_begin(self, state):
        step = state.make_step

        def scaled():
            step()
            if state.is_train:
                for weight in state.model.parameters():
                    weight.data = weight.data * 0.99

        state.make_step = scaled


def test_a_step_around_the_graph_that_replaces_weights(capsys):
    model, other = Net().double(), Net().double()
    for module, callbacks in ((model, [CompiledStep(), Scale()]), (other, [Scale()])):
        data = [(x.double(), y) for x, y in batches()]
        Runner(module, adam(module.parameters()), nn.CrossEntropyLoss(), callbacks=callbacks).fit(data, epochs=3)
    assert "was compiled" in capsys.readouterr().out
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-9, atol=1e-12)


def test_copies_during_and_after_a_run(capsys):
    class Copy(Callback):
        def on_epoch_end(self, state):
            self.copies = [copy.deepcopy(state.callbacks[1]), pickle.loads(pickle.dumps(state.callbacks[1]))]

    keep, ours = Copy(), CompiledStep()
    train(keep, ours)
    for one in (*keep.copies, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        capsys.readouterr()
        train(one)
        assert "was compiled" in capsys.readouterr().out


def test_a_resumed_process_takes_its_usual_steps_on_cuda_again():
    """The first calls of a process prepare the libraries of CUDA, which cannot be captured."""
    saved = {**CompiledStep().state_dict(), "seen": {"a shape": 2}}
    for device, seen in (("cuda", {}), ("cpu", {"a shape": 2})):
        step = CompiledStep()
        step._state = SimpleNamespace(device=torch.device(device))
        step.load_state_dict(saved)
        assert step.state_dict()["seen"] == seen


def test_the_class_of_the_state_is_as_before():
    class Look(Callback):
        def on_batch_end(self, state):
            assert type(state).__name__ == "RunnerState"
            assert type(state).__slots__

    train(CompiledStep(), Look())


class SlicesOfOneStorage(nn.Module):
    """A model whose two layers have one storage, and whose output is a view."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        whole = torch.randn(12, 6)
        self.first, self.second = nn.Parameter(whole[:6]), nn.Parameter(whole[6:])

    def double(self):
        whole = torch.cat([self.first.data, self.second.data]).double()
        self.first.data, self.second.data = whole[:6], whole[6:]
        return self

    def forward(self, input):
        return (input @ self.first @ self.second).t().t()


class TargetOfInput(Runner):
    """A task whose target is a part of the input, which needs a gradient."""

    def forward(self):
        state = self.state
        state.target = state.input.detach().view(-1)[: state.input.numel()].view_as(state.input)
        state.input = state.input.requires_grad_()
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)


@pytest.mark.compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "options",
    [{"model": SlicesOfOneStorage}, {"runner": TargetOfInput, "criterion": nn.MSELoss}],
    ids=["storage", "target"],
)
def test_the_compiler_gets_views(options, capsys):
    assert_follows(capsys, **options)
