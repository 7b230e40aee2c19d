"""A step of one's own keeps accumulation, precision and hooks, or is warned of."""

import copy
import warnings

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn


class Clip(Callback):
    def on_before_step(self, state):
        nn.utils.clip_grad_norm_(state.model.parameters(), 0.1)


class Look(Callback):
    def on_after_backward(self, state):
        self.norm = state.model.weight.grad.norm()


class Least(Runner):
    """Reaches nothing of what the standard step does."""

    def _make_step(self):
        state = self.state
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)
        if state.is_train:
            state.optimizer.zero_grad()
            state.loss.backward()
            state.optimizer.step()


class Keeps(Runner):
    """Keeps everything that the standard step does."""

    def _make_step(self):
        state = self.state
        with self.autocast():
            state.output = state.model(state.input)
            state.loss = state.criterion(state.output, state.target)
        if state.is_train:
            self.backward(state.loss)
            self.optimizer_step()


def pairs(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, generator=generator), torch.zeros(n, 1)) for n in sizes]


def trained(cls, callbacks=(), **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    runner = cls(model, optimizer, nn.MSELoss(), (), callbacks, **options)
    return runner.fit(pairs(4, 4, 2, 4, 1), 2, val_loader=pairs(3)), model


@pytest.mark.parametrize(
    ("callbacks", "options", "ignored"),
    [
        ([Clip(), Look()], {}, "Look, Clip"),
        ([], {"accumulate_steps": 2}, "accumulate_steps"),
        ([Clip()], {"use_fp16": True, "accumulate_steps": 2}, "Clip, accumulate_steps, use_fp16"),
        ([], {"use_bf16": True}, "use_bf16"),
    ],
)
def test_a_step_that_ignores_callbacks_and_settings_is_told_once(callbacks, options, ignored):
    with pytest.warns(UserWarning, match=f"your _make_step does not use {ignored}, ") as caught:
        trained(Least, callbacks, **options)
    assert len([warning for warning in caught if "_make_step" in str(warning.message)]) == 1


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_steps": 2}, {"use_bf16": True}, {"use_fp16": True, "accumulate_steps": 3}]
)
def test_a_step_of_the_public_pieces_is_the_standard_one(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history, model = trained(Keeps, [Clip(), Look()], **options)
    standard, other = trained(Runner, [Clip(), Look()], **options)
    assert history == standard
    assert torch.equal(model.weight, other.weight)


def test_a_step_may_go_backward_from_a_dict_of_losses():
    def parts(output, target):
        loss = nn.functional.mse_loss(output, target)
        return {"loss": loss, "half": loss / 2}

    def train(cls):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        return cls(model, torch.optim.SGD(model.parameters(), lr=0.1), parts).fit(pairs(4, 4, 2), 2)

    assert train(Keeps) == train(Runner)
    assert "train/half" in train(Keeps)[0]


def test_a_step_that_ignores_nothing_hears_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(Least)


def test_a_callback_may_wrap_the_step_of_a_run():
    class Twice(Callback):
        """Makes each training step two steps on the same batch."""

        def on_begin(self, state):
            make_step = state.make_step

            def twice():
                make_step()
                if state.is_train:
                    make_step()

            state.make_step = twice

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), (), [Twice()])
    runner.fit(pairs(4, 4))
    torch.manual_seed(0)
    by_hand = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    for input, target in pairs(4, 4):
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.mse_loss(by_hand(input), target).backward()
            optimizer.step()
    torch.testing.assert_close(model.weight, by_hand.weight)
    runner.state.callbacks.clear()
    runner.fit(pairs(4))
    assert runner.state.make_step == runner._make_step  # set afresh


class Accumulates(Runner):
    """Accumulates by itself, from public names alone."""

    def _make_step(self):
        state = self.state
        if state.batch_idx % state.accumulate_steps == 0:
            state.optimizer.zero_grad()
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)
        (state.loss / state.accumulate_steps).backward()
        if state.is_optimizer_step:
            state.optimizer.step()


@pytest.mark.filterwarnings("ignore:your _make_step does not use accumulate_steps")
def test_gradients_that_a_step_of_ones_own_has_accumulated_are_saved():
    saved = []

    class Save(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    def run(callbacks, state=None):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runner = Accumulates(model, optimizer, nn.MSELoss(), (), callbacks, accumulate_steps=3)
        if state:
            runner.state.load_state_dict(state)
        generator = torch.Generator().manual_seed(0)
        data = [(torch.randn(4, 3, generator=generator), torch.zeros(4, 1)) for _ in range(5)]
        runner.fit(data, epochs=2)
        return [*model.parameters()]

    gold = run([Save()])
    for state in saved:
        assert all(torch.equal(expected, resumed) for expected, resumed in zip(gold, run([], state), strict=True))


class TwoOptimizers(Runner):
    """Trains the bias with an optimizer of its own, by a loss of its own."""

    def __init__(self, model, callbacks=(), **options):
        super().__init__(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), (), callbacks, **options)
        self.of_bias = torch.optim.SGD([model.bias], lr=0.3)

    def _make_step(self):
        state = self.state
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)
        self.backward(state.loss)
        self.backward(state.model.bias.square().sum(), self.of_bias)
        self.optimizer_step()
        self.optimizer_step(self.of_bias)


def regression():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, generator=generator), torch.zeros(4, 1)) for _ in range(5)]


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_a_second_backward_pass_adds_to_the_gradients_of_the_first():
    hand, model = linear(), linear()
    sgd, of_bias = torch.optim.SGD(hand.parameters(), lr=0.1), torch.optim.SGD([hand.bias], lr=0.3)
    for input, target in regression():
        sgd.zero_grad()
        nn.functional.mse_loss(hand(input), target).backward()
        hand.bias.square().sum().backward()
        sgd.step()
        of_bias.step()
    TwoOptimizers(model).fit(regression())
    assert torch.equal(hand.weight, model.weight)
    assert torch.equal(hand.bias, model.bias)


def test_gradients_of_several_optimizers_are_restored_inside_a_window():
    saved = []

    class Save(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    def train(callbacks=(), state=None):
        model = linear()
        runner = TwoOptimizers(model, callbacks, accumulate_steps=3)
        if state:
            runner.state.load_state_dict(state)
        runner.fit(regression(), epochs=2)
        return model

    uninterrupted = train([Save()])
    assert len(saved) == 12
    for state in saved:
        resumed = train(state=state)
        assert torch.equal(uninterrupted.weight, resumed.weight)
        assert torch.equal(uninterrupted.bias, resumed.bias)
