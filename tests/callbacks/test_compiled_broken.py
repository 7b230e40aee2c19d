"""What once gave wrong numbers in a compiled step: it now follows the ordinary step, or says why it cannot."""

import copy
import pickle

import pytest
import torch
from fit_callbacks import CompiledStep
from fit_callbacks.compiled import traced
from fit_callbacks.compiled.batches import flatten
from fit_core import Callback, Runner
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(traced, "_compile", lambda graph, inputs: graph)


class Net(nn.Module):
    """A network whose forward pass is a function, with an attribute of every kind."""

    def __init__(self, forward=lambda module, input: module.layers(input)):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.register_buffer("count", torch.ones(()))
        self.run, self.calls, self.options = forward, [], {"scale": 1.0}
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, input):
        return self.run(self, input)


def batches(number=10):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(6, (8,), generator=generator)) for _ in range(number)
    ]


def adam(weights):
    return torch.optim.Adam(weights, 1e-2)


def train(*callbacks, model=Net, make=adam, data=batches, runner=Runner, criterion=nn.CrossEntropyLoss, **options):
    model = model().double()
    torch.manual_seed(3)
    run = runner(model, make(model.parameters()), criterion(), callbacks=callbacks, **options)
    history = run.fit([(x.double(), y if y.dtype is torch.int64 else y.double()) for x, y in data()], epochs=3)
    return [row["train/loss"] for row in history], model.state_dict(), run.state.optimizer.state_dict()["state"]


def assert_follows(capsys, *callbacks, reason=None, **options):
    """Train with CompiledStep and without."""
    ours = train(*callbacks, CompiledStep(), **options)
    out = capsys.readouterr().out
    assert (reason is None) == ("as usual" not in out), out
    assert (reason or "was compiled") in out
    torch.testing.assert_close(ours, train(*callbacks, **options), rtol=1e-9, atol=1e-12)


def rebinds(module, input):
    module.count = module.count + 1
    return module.layers(input) / module.count


def appends(module, input):
    module.calls.append(1)
    return module.layers(input) / len(module.calls)


def draws(module, input):
    return module.layers(input + torch.rand(6, generator=module.generator))


def seeds(module, input):
    torch.manual_seed(0)
    return module.layers(dropout(input))


def in_place(module, input):
    return module.layers(input.mul_(0.9))


def drops_twice(module, input):
    return module.layers(checkpoint(dropout, input.requires_grad_(), use_reentrant=False))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (rebinds, "the step changes model.count, which a graph would not"),
        (appends, "the step changes model.calls.0, which a graph would not"),
        (draws, "the step changes model.generator, which a graph would not"),
        (seeds, "the step seeds random numbers, or draws some twice"),
        (drops_twice, "the step seeds random numbers, or draws some twice"),
        (in_place, "the step changes the tensors of its batch in place"),
    ],
)
def test_forward_passes(forward, reason, capsys):
    assert_follows(capsys, model=lambda: Net(forward), reason=reason)


def test_checkpoint_without_random_numbers(capsys):
    def forward(module, input):
        return module.layers[2](checkpoint(module.layers[:2], input, use_reentrant=False))

    assert_follows(capsys, model=lambda: Net(forward))


def test_a_hook_that_counts(capsys):
    def hooked():
        model, seen = Net(), {"calls": 0}

        def hook(module, inputs, output):
            seen["calls"] += 1
            return output / seen["calls"]

        model.layers[0].register_forward_hook(hook)
        return model

    assert_follows(capsys, model=hooked, reason="seen.calls, which a graph would not")


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_of_a_weight_that_counts(register, capsys):
    def hooked():
        model, seen = Net(), {"calls": 0}

        def hook(tensor):
            seen["calls"] += 1
            if tensor.grad is not None:
                tensor.grad.div_(seen["calls"])

        getattr(model.layers[0].weight, register)(hook)
        return model

    assert_follows(capsys, model=hooked, reason="seen.calls, which a graph would not")


class Counting(Runner):
    calls = 0

    def forward(self):
        super().forward()
        self.calls += 1
        self.state.loss = self.state.loss / self.calls


class CountingLoss:
    def __init__(self):
        self.calls = 0

    def __call__(self, output, target):
        self.calls += 1
        return cross_entropy(output, target) / self.calls


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"runner": Counting}, "changes runner.calls"), ({"criterion": CountingLoss}, "changes criterion.calls")],
)
def test_runners_and_criterions_that_count(options, reason, capsys):
    assert_follows(capsys, reason=reason, **options)


def test_a_target_that_is_the_input_in_some_batches(capsys):
    def data():
        return [(x, x if number < 5 else x.flip(0)) for number, (x, _) in enumerate(batches())]

    assert_follows(capsys, data=data, criterion=nn.MSELoss)


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


def test_a_lazy_module(capsys):
    def lazy():
        torch.manual_seed(0)
        return nn.Sequential(nn.LazyLinear(6))

    assert_follows(capsys, model=lazy, reason="model.0 is lazy. Run a batch through the model before fit")


class Change(Callback):
    """Change something after a batch of each epoch, or before an epoch."""

    def __init__(self, change, hook="on_batch_end"):
        setattr(self, hook, lambda state: change(state) if hook == "on_epoch_begin" or state.batch_idx == 6 else None)


def scaled(module, input):
    return module.layers(input) * module.options["scale"] / module.count


def replace_weight(state):
    state.model.layers[0].weight.data = state.model.layers[0].weight.data * 0.9


def replace_buffer(state):
    state.model.count = state.model.count + 1


def replace_state(state):
    weight = state.model.layers[0].weight
    state.optimizer.state[weight]["exp_avg"] = torch.zeros_like(weight)


def drop_state(state):
    del state.optimizer.state[state.model.layers[2].weight]


def replace_rate(state):
    state.optimizer.param_groups[0]["lr"] = torch.tensor(0.01 / (1 + state.epoch), dtype=torch.float64)


@pytest.mark.parametrize("change", [replace_weight, replace_buffer, replace_state, drop_state, replace_rate])
def test_what_a_callback_replaces_between_batches(change, capsys):
    assert_follows(capsys, Change(change), model=lambda: Net(scaled))


def replace_parameter(state):
    if state.epoch:
        state.model.layers[0].weight = nn.Parameter(state.model.layers[0].weight.detach() * 0.9)


def change_option(state):
    state.model.options["scale"] = 1.0 + state.epoch


def replace_options(state):
    state.model.options = {"scale": 1.0 + state.epoch}


@pytest.mark.parametrize("change", [replace_parameter, change_option, replace_options])
def test_what_a_callback_replaces_between_epochs(change, capsys):
    assert_follows(capsys, Change(change, "on_epoch_begin"), model=lambda: Net(scaled))
