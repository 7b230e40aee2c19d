"""Steps that once gave wrong numbers when compiled now follow the ordinary step, or say why they cannot."""

import pytest
import torch
from fit_core import Callback, Runner
from followed import Net, assert_follows, batches
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from torch.utils.checkpoint import checkpoint


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
