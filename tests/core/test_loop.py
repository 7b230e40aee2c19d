"""A callback may make the step in place of `make_step`, and the loop takes note of it."""

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn


class Count:
    """A metric that counts its batches, and equals every other one, as those of torchmetrics do."""

    def __init__(self, name):
        self.name, self.batches = name, 0

    def __eq__(self, other):
        return True

    __hash__ = None

    def reset(self):
        self.batches = 0

    def update(self, output, target):
        self.batches += 1

    def compute(self):
        return self.batches


class ByHand(Callback):
    """Makes the step of every batch itself, and updates the first metric in it."""

    def on_begin(self, state):
        self.state, self.step = state, state.make_step
        state.make_step = self.make

    def make(self):
        state, loop, metrics = self.state, self.state.loop, self.state.metrics
        parameters = list(state.model.parameters())
        kept = [parameter.grad for parameter in parameters]
        random = torch.get_rng_state()
        with loop.rehearse():
            self.step_without_consequences(state)
        torch.set_rng_state(random)
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient
        divisor, factor = loop.weigh()
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)
        if not loop.has_gradients:
            state.optimizer.zero_grad()
        elif factor is not None:
            for parameter in parameters:
                parameter.grad.mul_(factor)
        (state.loss / divisor).backward()
        if state.is_optimizer_step:
            state.optimizer.step()
        metrics[0].update(state.output, state.target)
        loop.note_step([metrics[0]])

    def step_without_consequences(self, state):
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        gradients = [None if p.grad is None else p.grad.clone() for p in state.model.parameters()]
        originals = [p.grad for p in state.model.parameters()]
        self.step()
        state.model.load_state_dict(before)
        for original, gradient in zip(originals, gradients, strict=True):
            if original is not None:
                original.copy_(gradient)


def train(callbacks, size):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    batches = [(torch.randn(n, 3).double(), torch.randint(2, (n,))) for n in (4, 4, 4, 4, 3)]
    metrics = [Count("first"), Count("second")]
    options = {"callbacks": callbacks, "accumulate_steps": size}
    runner = Runner(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), metrics, **options)
    return runner.fit(batches, epochs=2), model


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_that_a_callback_makes_counts_once(size):
    history, model = train([ByHand()], size)
    expected, theirs = train([], size)
    assert [row["train/loss"] for row in history] == pytest.approx([row["train/loss"] for row in expected], rel=1e-12)
    torch.testing.assert_close(model.state_dict(), theirs.state_dict())
    assert [(row["train/first"], row["train/second"]) for row in history] == [(5, 5)] * 2
